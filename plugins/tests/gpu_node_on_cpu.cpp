// Registers the node for GPUs for the CPU provider, where tensors lie in the memory that the emulated GPU reads.
#include "gpu_kernel.h"
#include "operators.h"

void na_deploy::ort::add_all_operators(Ort::CustomOpDomain& domain) {
  add_operators<GpuKernel>(domain, "CPUExecutionProvider");
}
