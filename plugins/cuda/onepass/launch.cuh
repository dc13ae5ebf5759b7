// The one-pass kernel's entry points and their launch, for nvcc.
#pragma once

#include "launch.h"
#include "onepass/groups.h"
#include "onepass/kernel.h"
#include "onepass/plan.h"
#include "shared_memory.cuh"

namespace na_deploy::cuda {
namespace onepass {

#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 900
constexpr bool kIsOld = true;
#else
constexpr bool kIsOld = false;
#endif

template <typename T, int kDim, int kChunks>
__global__ void __launch_bounds__(resident_threads(kDim, kChunks, kIsOld), 1)
    entry(const __grid_constant__ CudaProblem problem, const __grid_constant__ Plan plan) {
  OnePassKernel<T, kDim, kChunks>(problem, plan).run();
}

template <typename T, int kDim>
__global__ void __launch_bounds__(resident_threads(kDim, kMostChunks, kIsOld), 1)
    entry_grouped(const __grid_constant__ CudaProblem problem, const __grid_constant__ Plan plan) {
  GroupedKernel<T, kDim>(problem, plan).run();
}

using Entry = void (*)(CudaProblem, Plan);

inline int32_t launch_plan(Entry entry, const CudaProblem& problem, const Plan& plan, const Device& device,
                           na_cuda_stream stream) {
  const int64_t blocks = plan.grid.blocks * plan.shares;
  if (blocks == 0 || problem.batch == 0) return cudaSuccess;
  if (blocks > kMostBlocks) return cudaErrorInvalidConfiguration;
  const cudaError_t allowed = allow_shared(entry, device.block_shared);
  if (allowed != cudaSuccess) return allowed;
  entry<<<static_cast<unsigned>(blocks), static_cast<unsigned>(32 * plan.warps), static_cast<size_t>(plan.room.bytes),
          stream>>>(problem, plan);
  return cudaGetLastError();
}

}  // namespace onepass

template <typename T, int kDim>
int32_t launch_onepass(const CudaProblem& problem, const onepass::Plan& plan, const onepass::Device& device,
                       na_cuda_stream stream) {
  if (onepass::is_grouped(plan.chunks)) {
    return onepass::launch_plan(onepass::entry_grouped<T, kDim>, problem, plan, device, stream);
  }
#define NA_CASE(chunks) \
  case chunks:          \
    return onepass::launch_plan(onepass::entry<T, kDim, chunks>, problem, plan, device, stream);
  switch (plan.chunks) {
    NA_ONEPASS_CHUNKS(NA_CASE)
    default:
      return cudaErrorInvalidValue;
  }
#undef NA_CASE
}

}  // namespace na_deploy::cuda
