// The execution providers that the library has kernels for. A session looks at those of its own providers alone.
#include "cpu_kernel.h"
#include "operators.h"
#ifdef NA_DEPLOY_CUDA
#include "gpu_kernel.h"
#endif

namespace na_deploy::ort {

void add_all_operators(Ort::CustomOpDomain& domain) {
  add_operators<CpuKernel>(domain, "CPUExecutionProvider");
#ifdef NA_DEPLOY_CUDA
  add_operators<GpuKernel>(domain, "CUDAExecutionProvider");
#endif
}

}  // namespace na_deploy::ort
