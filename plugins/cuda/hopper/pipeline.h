// Barriers in shared memory, and copies that arrive at them: they let some warps of a block fetch for others.
#pragma once

#include <cstdint>

#include "device.h"

#ifdef NA_CUDA_EMULATED
#include "hopper_emulator.h"
#else
#include <cuda.h>
#endif

namespace na_deploy::cuda::hopper {

// A place in a ring of stages, and the parity of the round.
template <int kStages>
struct Ring {
  int index = 0;
  uint32_t phase = 0;

  NA_DEVICE void advance() {
    if (++index == kStages) {
      index = 0;
      phase ^= 1;
    }
  }
};

#ifndef NA_CUDA_EMULATED

using TensorMap = CUtensorMap;

NA_DEVICE void make_barrier(dev::Shared barrier, uint32_t arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;\n" ::"r"(barrier), "r"(arrivals) : "memory");
}
// Makes barriers known to copies.
NA_DEVICE void publish_barriers() { asm volatile("fence.mbarrier_init.release.cluster;\n" ::: "memory"); }
NA_DEVICE void arrive(dev::Shared barrier) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];\n" ::"r"(barrier) : "memory");
}
// Arrives, and makes the barrier wait for so many bytes as well.
NA_DEVICE void expect_bytes(dev::Shared barrier, uint32_t bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;\n" ::"r"(barrier), "r"(bytes) : "memory");
}
// Waits until the barrier's phase of this parity is over.
NA_DEVICE void await(dev::Shared barrier, uint32_t parity) {
  asm volatile(
      "{\n.reg .pred done;\nagain:\n"
      "mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n"
      "@done bra over;\nbra again;\nover:\n}\n" ::"r"(barrier),
      "r"(parity)
      : "memory");
}

// Starts copying a box, swizzled in rows of 128 bytes; what lies outside the tensor is zeros.
NA_DEVICE void copy_box(dev::Shared to, const TensorMap& from, dev::Shared barrier, const int32_t (&at)[5]) {
  asm volatile(
      "cp.async.bulk.tensor.5d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%3, %4, %5, %6, %7}], "
      "[%2];\n" ::"r"(to),
      "l"(&from), "r"(barrier), "r"(at[0]), "r"(at[1]), "r"(at[2]), "r"(at[3]), "r"(at[4])
      : "memory");
}

// Waits for the 128 threads of a warp group; `number` is from 1 on.
NA_DEVICE void sync_group(int number) { asm volatile("bar.sync %0, 128;\n" ::"r"(number) : "memory"); }

// Lowers or raises the number of registers of a warp group.
template <int kRegisters>
NA_DEVICE void give_registers() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;\n" ::"n"(kRegisters));
}
template <int kRegisters>
NA_DEVICE void take_registers() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;\n" ::"n"(kRegisters));
}

#endif  // NA_CUDA_EMULATED

}  // namespace na_deploy::cuda::hopper
