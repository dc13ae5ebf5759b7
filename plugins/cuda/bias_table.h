// Size of a head's table of biases, and how far tiles read past it.
#pragma once

#include <cstdint>

#include "problem.h"

namespace na_deploy::cuda {

// Number of a head's biases.
NA_HOST_DEVICE int64_t bias_numbers(const CudaProblem& p) {
  return int64_t{p.bias_distance[0]} * (2 * p.axis[0].kernel_size - 1);
}

// Reach of bias indices below and above the head's own, for keys of a tile's boxes that a query does not see.
struct BiasReach {
  int32_t below;
  int32_t above;
};

NA_HOST_DEVICE BiasReach bias_reach(const CudaProblem& p, Sizes tile, Sizes box) {
  BiasReach r{0, 0};
  for (int a = 0; a < kAxes; ++a) {
    r.below += (tile[a] - 1) * p.bias_distance[a];
    r.above += (tile[a] + box[a] - 2) * p.bias_distance[a];
  }
  return r;
}

// Numbers of shared memory for a head's biases and the room around them. 0 without biases, and for more than
// kMostSharedBias, which are read from the tensor.
constexpr int32_t kMostSharedBias = 4096;
inline int32_t shared_bias_numbers(const CudaProblem& p, Sizes tile, Sizes box) {
  if (p.rel_pos_bias == nullptr) return 0;
  const BiasReach reach = bias_reach(p, tile, box);
  const int64_t numbers = reach.below + bias_numbers(p) + reach.above;
  return numbers <= kMostSharedBias ? static_cast<int32_t>(numbers) : 0;
}

}  // namespace na_deploy::cuda
