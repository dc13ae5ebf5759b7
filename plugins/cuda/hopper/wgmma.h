// Products of a warp group (128 threads, 64 rows) on Hopper's tensor cores: wgmma, in the layouts of the PTX manual.
//
// Products run while threads go on: results and operands must not be touched before the wait for them.
#pragma once

#include <cstdint>

#include "device.h"

namespace na_deploy::cuda::hopper {

// Describes rows of 128 bytes in shared memory, swizzled as copies write them, to the tensor cores. `rows`: the address
// of the first; `leading`: bytes from 64 channels to the next 64, where the sum does not run over channels.
NA_DEVICE uint64_t describe(dev::Shared rows, uint32_t leading) {
  constexpr uint64_t kSwizzle128 = uint64_t{1} << 62;
  constexpr uint64_t kEightRows = 8 * 128;
  return kSwizzle128 | (kEightRows >> 4) << 32 | uint64_t{(leading >> 4) & 0x3FFF} << 16 | ((rows >> 4) & 0x3FFF);
}

// Returns the described rows, or channels, moved on by `bytes`. Only the address changes, within its 14 bits, which
// cover more than a block's shared memory.
NA_DEVICE uint64_t further(uint64_t described, uint32_t bytes) {
  constexpr uint64_t kRest = 0xFFFFFFFF00000000U;
  return (described & kRest) | (static_cast<uint32_t>(described) + (bytes >> 4));
}

#ifndef NA_CUDA_EMULATED

// Lets products read and overwrite registers that were written before.
NA_DEVICE void begin_products() { asm volatile("wgmma.fence.sync.aligned;\n" ::: "memory"); }
NA_DEVICE void commit_products() { asm volatile("wgmma.commit_group.sync.aligned;\n" ::: "memory"); }
// Waits until at most kPending groups of products are under way. Waits of different kPlace are not merged.
template <int kPending, int kPlace = 0>
NA_DEVICE void wait_products() {
  asm volatile("wgmma.wait_group.sync.aligned %0;  // %1\n" ::"n"(kPending), "n"(kPlace) : "memory");
}
// Tells the compiler that products may just have written these registers, so that it moves no read ahead of the wait.
template <int kTiles>
NA_DEVICE void arrived(float (&d)[kTiles][4]) {
  NA_UNROLL
  for (int n = 0; n < kTiles; ++n) {
    NA_UNROLL
    for (int i = 0; i < 4; ++i) asm volatile("" : "+f"(d[n][i])::"memory");
  }
}

#define NA_OUT4(n) "+f"(d[n][0]), "+f"(d[n][1]), "+f"(d[n][2]), "+f"(d[n][3])
#define NA_OUT32(n)                                                                                           \
  NA_OUT4(n), NA_OUT4(n + 1), NA_OUT4(n + 2), NA_OUT4(n + 3), NA_OUT4(n + 4), NA_OUT4(n + 5), NA_OUT4(n + 6), \
      NA_OUT4(n + 7)
// The product NA_PRODUCT(type) for T.
#define NA_OF_TYPE                 \
  if constexpr (dev::kIsHalf<T>) { \
    NA_PRODUCT("f16");             \
  } else {                         \
    NA_PRODUCT("bf16");            \
  }
#define NA_LIST64                                                           \
  "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, " \
  "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31}, "
#define NA_LIST128                                                                   \
  "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "          \
  "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, " \
  "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, " \
  "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63}, "

// d (64 x 128) = or += a (64 x 16) times b (128 x 16) transposed, both in shared memory with channels side by side.
template <typename T>
NA_DEVICE void multiply_rows(float (&d)[16][4], uint64_t a, uint64_t b, bool accumulate) {
#define NA_PRODUCT(type)                                                                                          \
  asm volatile(                                                                                                   \
      "{\n.reg .pred p;\nsetp.ne.b32 p, %66, 0;\n"                                                                \
      "wgmma.mma_async.sync.aligned.m64n128k16.f32." type "." type " " NA_LIST128 "%64, %65, p, 1, 1, 0, 0;\n}\n" \
      : NA_OUT32(0), NA_OUT32(8)                                                                                  \
      : "l"(a), "l"(b), "r"(static_cast<int32_t>(accumulate)))
  NA_OF_TYPE
#undef NA_PRODUCT
}

// d (64 x 8 kTiles) += a (64 x 16), in registers, times b (16 x 8 kTiles), in shared memory, rows of channels.
template <typename T>
NA_DEVICE void multiply_values(float (&d)[8][4], const uint32_t (&a)[4], uint64_t b) {
#define NA_PRODUCT(type)                                                                 \
  asm volatile("wgmma.mma_async.sync.aligned.m64n64k16.f32." type "." type " " NA_LIST64 \
               "{%32, %33, %34, %35}, %36, 1, 1, 1, 1;\n"                                \
               : NA_OUT32(0)                                                             \
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b))
  NA_OF_TYPE
#undef NA_PRODUCT
}
template <typename T>
NA_DEVICE void multiply_values(float (&d)[16][4], const uint32_t (&a)[4], uint64_t b) {
#define NA_PRODUCT(type)                                                                   \
  asm volatile("wgmma.mma_async.sync.aligned.m64n128k16.f32." type "." type " " NA_LIST128 \
               "{%64, %65, %66, %67}, %68, 1, 1, 1, 1;\n"                                  \
               : NA_OUT32(0), NA_OUT32(8)                                                  \
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b))
  NA_OF_TYPE
#undef NA_PRODUCT
}
#undef NA_OUT4
#undef NA_OUT32
#undef NA_LIST64
#undef NA_LIST128
#undef NA_OF_TYPE

#endif  // NA_CUDA_EMULATED

}  // namespace na_deploy::cuda::hopper
