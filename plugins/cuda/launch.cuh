// The kernels' entry points and their launches, for nvcc.
#pragma once

#include <algorithm>

#include "launch.h"
#include "plain_kernel.h"
#include "shared_memory.cuh"
#include "tile_kernel.h"

namespace na_deploy::cuda {

template <typename T>
__global__ void __launch_bounds__(kPlainThreads) plain_entry(const __grid_constant__ CudaProblem problem) {
  plain_kernel<T>(problem);
}

// Threads of a multiprocessor for which registers must suffice: as many as fit without spilling.
template <typename T, int kDim, typename S>
constexpr int resident_threads() {
  if (S::kKeys > 64 || kDim * sizeof(T) > kNarrowBytes) return 256;
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  if (sizeof(T) == 2) return 512;
#endif
  return 384;
}

template <typename T, int kDim, typename S>
__global__ void __launch_bounds__((Layout<T, kDim, S>::kThreads),
                                  resident_threads<T, kDim, S>() / (Layout<T, kDim, S>::kThreads))
    tile_entry(const __grid_constant__ CudaProblem problem, const __grid_constant__ TileGrid grid,
               int32_t shared_bias) {
  TileKernel<T, kDim, S>(problem, grid, shared_bias).run();
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
  const TileGrid grid = make_tile_grid(problem, S::tile());
  if (grid.blocks == 0) return cudaSuccess;
  if (grid.blocks > kMostBlocks) return launch_plain<T>(problem, stream);
  const int32_t shared_bias = shared_bias_numbers(problem, S::tile(), S::box());
  const int bytes = Layout<T, kDim, S>::bytes(shared_bias);
  constexpr int kMostBytes = Layout<T, kDim, S>::bytes(kMostSharedBias);
  const cudaError_t allowed = allow_shared(tile_entry<T, kDim, S>, kMostBytes);
  if (allowed != cudaSuccess) return allowed;
  tile_entry<T, kDim, S>
      <<<static_cast<unsigned>(grid.blocks), (Layout<T, kDim, S>::kThreads), static_cast<size_t>(bytes), stream>>>(
          problem, grid, shared_bias);
  return cudaGetLastError();
}

template <typename T, int kDim>
int32_t launch_tile(const CudaProblem& problem, int32_t tactic, na_cuda_stream stream) {
#define NA_CASE(id, rank, t0, t1, t2, b0, b1, b2) \
  case id:                                        \
    return launch_shape<T, kDim, Shape<rank, t0, t1, t2, b0, b1, b2>>(problem, stream);
  if constexpr (has_wide(kDim, sizeof(T))) {
    switch (tactic) { NA_WIDE_SHAPES(NA_CASE) }
  }
  switch (tactic) {
    NA_TILE_SHAPES(NA_CASE)
    default:
      return cudaErrorInvalidValue;
  }
#undef NA_CASE
}

}  // namespace na_deploy::cuda
