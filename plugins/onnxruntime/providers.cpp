// The execution providers that the library has kernels for. A session looks at those of its own providers alone.
#include "cpu_kernel.h"
#include "operators.h"
#ifdef NA_DEPLOY_CUDA
#include <cstdio>

#include "gpu_kernel.h"
#include "na_cuda.h"
#endif

namespace na_deploy::ort {

void add_all_operators(Ort::CustomOpDomain& domain) {
  add_operators<CpuKernel>(domain, "CPUExecutionProvider");
#ifdef NA_DEPLOY_CUDA
  constexpr int32_t kNoDevice = 100;  // cudaErrorNoDevice
  const int32_t error = na_cuda_devices();
  if (error == 0) {
    add_operators<GpuKernel>(domain, "CUDAExecutionProvider");
  } else if (error != kNoDevice) {
    std::fprintf(stderr,
                 "na_deploy: warning: CUDA answers with error %d, %s; sessions on the GPU run the models' function "
                 "bodies instead of this library's GPU kernels\n",
                 error, na_cuda_error(error));
  }
#endif
}

}  // namespace na_deploy::ort
