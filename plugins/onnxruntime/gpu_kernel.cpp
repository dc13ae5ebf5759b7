#include "gpu_kernel.h"

#include <cstddef>
#include <cstdint>
#include <string>

#include "na_cuda.h"
#include "params.h"
#include "problem.h"

namespace na_deploy::ort {
namespace {

// The kernels copy 16 bytes at a time.
constexpr uintptr_t kAlignment = 16;

constexpr int32_t kNoKernelImage = 209;  // cudaErrorNoKernelImageForDevice

// ONNX Runtime's own memory is aligned; a tensor that an application binds may begin anywhere.
void expect_aligned(const char* name, const void* data) {
  const uintptr_t past = reinterpret_cast<uintptr_t>(data) % kAlignment;
  if (past != 0) {
    refuse(name, " must begin at an address that is a multiple of ", kAlignment, " on a GPU, got one ", past,
           " bytes past it; bind a copy of it");
  }
}

void expect_aligned(const na_params& params) {
  expect_aligned(params.packed != 0 ? "qkv" : "query", params.query);
  expect_aligned("key", params.key);
  expect_aligned("value", params.value);
  expect_aligned("rel_pos_bias", params.rel_pos_bias);
  expect_aligned("additional_key", params.additional_key);
  expect_aligned("additional_value", params.additional_value);
  expect_aligned("padding", params.padding);
  expect_aligned("output", params.output);
  expect_aligned("lse", params.lse);
}

na_cuda_stream stream_of(const OrtKernelContext* context) {
  void* stream = nullptr;
  Ort::ThrowOnError(Ort::GetApi().KernelContext_GetGPUComputeStream(context, &stream));
  return static_cast<na_cuda_stream>(stream);
}

std::string launch_failure(int32_t error) {
  std::string text =
      "CUDA answers the launch of the GPU kernel with error " + std::to_string(error) + ", " + na_cuda_error(error);
  if (error == kNoKernelImage) {
    text += std::string("; the library is compiled for compute capabilities ") + na_cuda_capabilities() +
            ", compile it for this GPU's with -DCMAKE_CUDA_ARCHITECTURES";
  }
  return text;
}

}  // namespace

GpuKernel::GpuKernel(Node node, const OrtKernelInfo* /*info*/) : node_(std::move(node)) {}

OrtStatusPtr GpuKernel::ComputeV2(OrtKernelContext* context) const noexcept {
  return as_status(node_.subject.c_str(), [&] { run(context); });
}

void GpuKernel::run(OrtKernelContext* context) const {
  const Problem problem = read_problem(node_.form, node_.attributes, context);
  na_params params = params_of(problem, node_);
  char message[256] = "";
  if (na_check(&params, message, sizeof message) != 0) refuse(message);
  if (na_cuda_check(&params, message, sizeof message) != 0) {
    refuse(message, "; without this library the node runs on its function body (custom_operators=False)");
  }
  make_outputs(context, problem, params);
  if (params.batch == 0) return;  // nothing to write, and tensors without elements may have no memory
  expect_aligned(params);
  const int32_t error = na_forward(&params, 0, stream_of(context));
  if (error != 0) throw std::runtime_error(launch_failure(error));
}

}  // namespace na_deploy::ort
