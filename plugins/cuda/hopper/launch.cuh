// The entry point of Hopper's kernels and its launch, for nvcc with sm_90a alone.
#pragma once

#include <cuda.h>
#include <cudaTypedefs.h>

#include "hopper/kernel.h"
#include "launch.h"
#include "shared_memory.cuh"

namespace na_deploy::cuda {
namespace hopper {

template <typename T, int kDim, typename S>
__global__ void __launch_bounds__(kThreads, 1)
    entry(const __grid_constant__ CudaProblem problem, const __grid_constant__ TileGrid grid,
          const __grid_constant__ Tensors<TensorMap> tensors) {
  HopperKernel<T, kDim, S>(problem, grid, tensors).run();
}

// The driver's function that encodes tensors; null where the driver has none. Found once.
inline PFN_cuTensorMapEncodeTiled_v12000 encoder() {
  static const auto found = [] {
    void* function = nullptr;
    cudaDriverEntryPointQueryResult result{};
#if CUDART_VERSION >= 12050
    const cudaError_t error =
        cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &function, 12000, cudaEnableDefault, &result);
#else
    const cudaError_t error = cudaGetDriverEntryPoint("cuTensorMapEncodeTiled", &function, cudaEnableDefault, &result);
#endif
    const bool have = error == cudaSuccess && result == cudaDriverEntryPointSuccess;
    return reinterpret_cast<PFN_cuTensorMapEncodeTiled_v12000>(have ? function : nullptr);
  }();
  return found;
}

// Encodes a tensor of 16-bit numbers; returns whether the driver took it.
inline bool encode(const TensorBox& tensor, CUtensorMapDataType type, TensorMap& map) {
  cuuint64_t size[kTensorAxes];
  cuuint64_t bytes[kTensorAxes - 1];
  cuuint32_t box[kTensorAxes];
  cuuint32_t step[kTensorAxes];
  for (int a = 0; a < kTensorAxes; ++a) {
    size[a] = tensor.size[a];
    box[a] = tensor.box[a];
    step[a] = 1;
    if (a > 0) bytes[a - 1] = tensor.distance[a] * 2;
  }
  return encoder()(&map, type, kTensorAxes, const_cast<void*>(tensor.base), size, bytes, box, step,
                   CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B, CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
                   CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE) == CUDA_SUCCESS;
}

template <typename T, int kDim, typename S>
int32_t launch_shape(const CudaProblem& problem, na_cuda_stream stream) {
  const TileGrid grid = make_tile_grid(problem, S::tile());
  if (grid.blocks == 0) return cudaSuccess;
  if (grid.blocks > kMostBlocks) return cudaErrorInvalidConfiguration;
  // This call comes first, because it makes the device's context current on a new thread, and the driver encodes
  // tensors only with a context.
  constexpr int kMostBytes = HopperLayout<kDim, S>::bytes(kMostSharedBias);
  const cudaError_t allowed = allow_shared(entry<T, kDim, S>, kMostBytes);
  if (allowed != cudaSuccess) return allowed;
  if (encoder() == nullptr) return cudaErrorNotSupported;
  constexpr CUtensorMapDataType kType =
      dev::kIsHalf<T> ? CU_TENSOR_MAP_DATA_TYPE_FLOAT16 : CU_TENSOR_MAP_DATA_TYPE_BFLOAT16;
  bool taken = true;
  const Tensors<TensorMap> tensors = make_tensors<S>(problem, [&](const TensorBox& tensor) {
    TensorMap map;
    taken = encode(tensor, kType, map) && taken;
    return map;
  });
  if (!taken) return cudaErrorInvalidValue;
  const int bytes = HopperLayout<kDim, S>::bytes(shared_bias_numbers(problem, S::tile(), S::box()));
  entry<T, kDim, S>
      <<<static_cast<unsigned>(grid.blocks), kThreads, static_cast<size_t>(bytes), stream>>>(problem, grid, tensors);
  return cudaGetLastError();
}

}  // namespace hopper

template <typename T, int kDim>
int32_t launch_hopper(const CudaProblem& problem, int32_t tactic, na_cuda_stream stream) {
#define NA_CASE(id, rank, t0, t1, t2) \
  case id:                            \
    return hopper::launch_shape<T, kDim, Shape<rank, t0, t1, t2, t0, t1, t2>>(problem, stream);
  switch (tactic) {
    NA_HOPPER_SHAPES(NA_CASE)
    default:
      return cudaErrorInvalidValue;
  }
#undef NA_CASE
}

}  // namespace na_deploy::cuda
