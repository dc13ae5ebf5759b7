// Permission for a kernel to use more shared memory than the 48 KiB that every kernel gets.
#pragma once

#include <cuda_runtime.h>

namespace na_deploy::cuda {

// `bytes`: the most that any problem needs, because the permission belongs to the kernel, which other threads launch
// too.
template <typename Kernel>
cudaError_t allow_shared(Kernel* kernel, int bytes) {
  const cudaError_t error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes);
  if (error != cudaSuccess) cudaGetLastError();  // else a later launch would report it
  return error;
}

}  // namespace na_deploy::cuda
