// Which execution providers the library has kernels for. Those of a provider that a session lacks are not looked at.
#include "attention_kernel.h"
#include "operators.h"
#ifdef NA_DEPLOY_CUDA
#include "gpu_kernel.h"
#endif

namespace na_deploy::ort {

void add_all_operators(Ort::CustomOpDomain& domain) {
  add_operators<AttentionKernel>(domain, "CPUExecutionProvider");
#ifdef NA_DEPLOY_CUDA
  add_operators<GpuKernel>(domain, "CUDAExecutionProvider");
#endif
}

}  // namespace na_deploy::ort
