// A head's biases in the unit of scores, log2: from the tensor, or from shared memory.
#pragma once

#include <cstdint>

#include "bias_table.h"
#include "device.h"
#include "problem.h"

namespace na_deploy::cuda {

constexpr float kLog2E = 1.44269504F;

// The head's bias `index`, read from the tensor; an index outside the table gives its last bias.
template <typename T>
struct StoredBias {
  const T* table;
  uint32_t last;

  NA_DEVICE StoredBias(const CudaProblem& p, int32_t head)
      : table(static_cast<const T*>(p.rel_pos_bias) + head * bias_numbers(p)),
        last(static_cast<uint32_t>(bias_numbers(p) - 1)) {}
  NA_DEVICE float operator()(int32_t index) const {
    return dev::to_float(table[smaller(static_cast<uint32_t>(index), last)]) * kLog2E;
  }
};

// The head's biases in shared memory, with room for indices outside the table.
struct SharedBias {
  int32_t zero;  // byte offset of index 0

  // `at`: byte offset of the table with its room.
  template <typename S>
  NA_DEVICE static SharedBias at(const CudaProblem& p, int32_t at) {
    return {at + 4 * bias_reach(p, S::tile(), S::box()).below};
  }
  NA_DEVICE float& operator()(int32_t index) const { return dev::shared_object<float>(zero + 4 * index); }

  // Reads the head's table, all threads of the block together.
  template <typename T>
  NA_DEVICE void read(const CudaProblem& p, int32_t head) const {
    const StoredBias<T> stored(p, head);
    for (int n = dev::thread(); n <= static_cast<int>(stored.last); n += dev::threads()) (*this)(n) = stored(n);
  }
};

// Biases of a problem that has none: zeros.
struct NoBias {
  NA_DEVICE float operator()(int32_t) const { return 0.0F; }
};

}  // namespace na_deploy::cuda
