#include "gpu_kernel.h"

#include <cstdint>
#include <string>
#include <utility>

#include "na_cuda.h"
#include "operator.h"

namespace na_deploy::ort {
namespace {

constexpr int32_t kNoKernelImage = 209;      // cudaErrorNoKernelImageForDevice
constexpr int32_t kInsufficientDriver = 35;  // cudaErrorInsufficientDriver

na_cuda_stream stream_of(const OrtKernelContext* context) {
  void* stream = nullptr;
  Ort::ThrowOnError(Ort::GetApi().KernelContext_GetGPUComputeStream(context, &stream));
  return static_cast<na_cuda_stream>(stream);
}

std::string in_words(int32_t error) {
  std::string text = "error " + std::to_string(error) + ", " + na_cuda_error(error);
  if (error == kNoKernelImage) {
    text += std::string("; the library is compiled for compute capabilities ") + na_cuda_capabilities() +
            ", compile it for this GPU's with -DCMAKE_CUDA_ARCHITECTURES";
  }
  if (error == kInsufficientDriver) text += "; update the driver, or compile the library with an older CUDA toolkit";
  return text;
}

}  // namespace

int32_t TacticCache::get(const na_params& params) {
  const std::lock_guard<std::mutex> lock(mutex_);
  if (tactic_ == 0 || !same_sizes(sizes_, params)) {
    sizes_ = params;
    na_cuda_tactics(&params, &tactic_, 1);
  }
  return tactic_;
}

GpuKernel::GpuKernel(Node node, const OrtKernelInfo* /*info*/) : node_(std::move(node)) {
  static const int32_t error = na_cuda_try(-1);
  if (error != 0) {
    throw std::runtime_error("CUDA answers the trial launch of the GPU kernels with " + in_words(error) +
                             "; without this library the model runs on its function bodies");
  }
}

OrtStatusPtr GpuKernel::ComputeV2(OrtKernelContext* context) const noexcept {
  return as_status(node_.subject.c_str(), [&] { run(context); });
}

void GpuKernel::run(OrtKernelContext* context) const {
  na_params params = read_call(node_, context);
  char message[256] = "";
  if (na_cuda_check(&params, message, sizeof message) != 0) {
    refuse(message, "; without this library the node runs on its function body (custom_operators=False)");
  }
  make_outputs(context, params);
  if (params.batch == 0) return;  // nothing to write, and tensors without elements may have no memory
  if (na_cuda_check_addresses(&params, message, sizeof message) != 0) refuse(message);
  const int32_t error = na_launch(&params, tactics_.get(params), stream_of(context));
  if (error != 0) {
    throw std::runtime_error("CUDA answers the launch of the GPU kernel with " + in_words(error));
  }
}

}  // namespace na_deploy::ort
