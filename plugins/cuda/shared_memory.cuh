// Leave for more shared memory than kernels get unasked.
#pragma once

#include <cuda_runtime.h>

namespace na_deploy::cuda {

// `bytes`: the most that any problem needs, since the leave is the kernel's, which other threads launch too.
template <typename Kernel>
cudaError_t allow_shared(Kernel* kernel, int bytes) {
  const cudaError_t error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes);
  if (error != cudaSuccess) cudaGetLastError();  // else a later launch would report it
  return error;
}

}  // namespace na_deploy::cuda
