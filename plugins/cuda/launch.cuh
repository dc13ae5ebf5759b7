// The kernels' entry points and their launches, for nvcc.
#pragma once

#include <algorithm>

#include "launch.h"
#include "plain_kernel.h"
#include "tile_kernel.h"

namespace na_deploy {

constexpr int64_t kMostBlocks = 0x7FFFFFFF;

template <typename T>
__global__ void __launch_bounds__(kPlainThreads) plain_entry(const __grid_constant__ CudaProblem problem) {
  plain_kernel<T>(problem);
}

// Threads of a multiprocessor that registers must leave room for; with more, scores and sums would spill.
constexpr int kResidentThreads = 256;

template <typename T, int kDim, typename S>
__global__ void __launch_bounds__(S::kThreads, kResidentThreads / S::kThreads)
    tile_entry(const __grid_constant__ CudaProblem problem) {
  TileKernel<T, kDim, S>(problem).run();
}

template <typename T>
int32_t launch_plain(const CudaProblem& problem, na_cuda_stream stream) {
  const int64_t queries = problem.batch * problem.positions * problem.heads;
  if (queries == 0) return cudaSuccess;
  constexpr int64_t kWarps = kPlainThreads / 32;
  const auto blocks = static_cast<unsigned>(std::min<int64_t>((queries + kWarps - 1) / kWarps, kMostBlocks));
  plain_entry<T><<<blocks, kPlainThreads, 0, stream>>>(problem);
  return cudaGetLastError();
}

template <typename T, int kDim, typename S>
int32_t launch_shape(const CudaProblem& problem, na_cuda_stream stream) {
  const int64_t blocks = tiles_of(problem, S::tile());
  if (blocks == 0) return cudaSuccess;
  if (blocks > kMostBlocks) return launch_plain<T>(problem, stream);
  constexpr int kBytes = Layout<kDim, S>::kBytes;
  if constexpr (kBytes > 48 * 1024) {  // more than kernels get unasked
    const cudaError_t allowed =
        cudaFuncSetAttribute(tile_entry<T, kDim, S>, cudaFuncAttributeMaxDynamicSharedMemorySize, kBytes);
    if (allowed != cudaSuccess) return allowed;
  }
  tile_entry<T, kDim, S><<<static_cast<unsigned>(blocks), S::kThreads, kBytes, stream>>>(problem);
  return cudaGetLastError();
}

template <typename T, int kDim>
int32_t launch_tile(const CudaProblem& problem, int32_t tactic, na_cuda_stream stream) {
#define NA_CASE(id, rank, t0, t1, t2, b0, b1, b2) \
  case id:                                        \
    return launch_shape<T, kDim, Shape<t0, t1, t2, b0, b1, b2>>(problem, stream);
  switch (tactic) {
    NA_TILE_SHAPES(NA_CASE)
    default:
      return cudaErrorInvalidValue;
  }
#undef NA_CASE
}

}  // namespace na_deploy
