#include "cpu_kernel.h"

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <thread>

#include "call.h"

namespace na_deploy::ort {
namespace {

// Returns whether the node's bias is a constant of the model.
bool has_constant_bias(const na_params& params, const OrtKernelInfo* info) {
  const auto index = static_cast<size_t>(bias_input(kind_of(params)));
  const Ort::ConstKernelInfo node{info};
  if (index >= node.GetInputCount() || node.GetInputName(index).empty()) return false;
  int is_constant = 0;
  const Ort::ConstValue tensor = node.GetTensorConstantInput(index, &is_constant);
  return static_cast<const OrtValue*>(tensor) != nullptr && is_constant != 0;
}

void run_piece(void* call, size_t piece) noexcept { static_cast<cpu::Call*>(call)->run(static_cast<int64_t>(piece)); }

}  // namespace

CpuKernel::CpuKernel(Node node, const OrtKernelInfo* info)
    : node_(std::move(node)), constant_bias_(has_constant_bias(node_.params, info)) {}

OrtStatusPtr CpuKernel::ComputeV2(OrtKernelContext* context) const noexcept {
  return as_status(node_.subject.c_str(), [&] { run(context); });
}

void CpuKernel::run(OrtKernelContext* context) const {
  static const int64_t threads = std::max(1U, std::thread::hardware_concurrency());
  na_params params = read_call(node_, context);
  make_outputs(context, params);
  cpu::Call call(params, plans_, constant_bias_, threads);
  const auto pieces = static_cast<size_t>(call.pieces());
  if (pieces == 1) {
    call.run(0);
  } else if (pieces > 1) {
    Ort::ThrowOnError(Ort::GetApi().KernelContext_ParallelFor(context, &run_piece, pieces, 0, &call));
  }
  call.finish();
}

}  // namespace na_deploy::ort
