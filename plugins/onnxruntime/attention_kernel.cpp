#include "attention_kernel.h"

#include <algorithm>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <new>
#include <optional>
#include <thread>

#include "na_cpu.h"
#include "padded_copy.h"
#include "padding.h"
#include "params.h"
#include "problem.h"

namespace na_deploy::ort {
namespace {

// Below this many multiply-adds, waking other threads costs more than they save.
constexpr double kWorthSharing = 250e3;
// Tasks are handed out in this many pieces per thread, so that a late thread finds work left.
constexpr int64_t kPiecesPerThread = 8;

// Scratch memory of the calling thread. It grows to the largest node's need and stays until the thread ends.
class Scratch {
 public:
  void* reserve(size_t bytes) {
    if (bytes > size_) {
      memory_.reset();
      size_ = 0;
      memory_ = make_aligned<std::byte>(bytes);
      size_ = bytes;
    }
    return memory_.get();
  }

 private:
  AlignedArray<std::byte> memory_;
  size_t size_ = 0;
};

thread_local Scratch scratch_of_thread;

// One call, as ONNX Runtime's threads see it: piece i is the tasks [i * per_piece, (i + 1) * per_piece).
struct Work {
  na_params params;
  const na_cpu_plan* plan = nullptr;
  int64_t per_piece = 0;
  std::atomic<bool> failed{false};  // a thread had no memory for its scratch

  int64_t pieces() const { return (plan->tasks + per_piece - 1) / per_piece; }

  static void run_piece(void* self, size_t piece) noexcept {
    auto& work = *static_cast<Work*>(self);
    const int64_t first = static_cast<int64_t>(piece) * work.per_piece;
    try {
      void* scratch = scratch_of_thread.reserve(work.plan->scratch_bytes);
      na_cpu_run(&work.params, work.plan, first, std::min(first + work.per_piece, work.plan->tasks), scratch);
    } catch (const std::bad_alloc&) {
      work.failed = true;
    }
  }
};

// Multiply-adds of one call, both products.
double multiply_adds(const Problem& problem, const Attributes& attributes) {
  double queries = static_cast<double>(problem.batch * problem.heads);
  double keys = 1.0;
  for (const int64_t length : problem.length) queries *= static_cast<double>(length);
  for (const int64_t size : attributes.kernel_size) keys *= static_cast<double>(size);
  return queries * (keys + static_cast<double>(problem.additional)) *
         static_cast<double>(problem.head_dim + problem.value_dim);
}

// What a bias that the model fixes allows: one of zeros, which the exporter gives nodes with additional keys, is none.
BiasKind kind_of_bias(Form form, ONNXTensorElementDataType type, const OrtKernelInfo* info) {
  const size_t index = form == Form::kPacked ? 1 : 3;
  const Ort::ConstKernelInfo node{info};
  if (index >= node.GetInputCount() || node.GetInputName(index).empty()) return BiasKind::kVariable;
  int is_constant = 0;
  const Ort::ConstValue tensor = node.GetTensorConstantInput(index, &is_constant);
  if (static_cast<const OrtValue*>(tensor) == nullptr || is_constant == 0) return BiasKind::kVariable;
  const size_t width = type == ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT ? sizeof(float) : sizeof(uint16_t);
  const auto* bytes = static_cast<const unsigned char*>(tensor.GetTensorRawData());
  const size_t count = tensor.GetTensorTypeAndShapeInfo().GetElementCount() * width;
  const bool zero = std::all_of(bytes, bytes + count, [](unsigned char byte) { return byte == 0; });
  return zero ? BiasKind::kZero : BiasKind::kConstant;
}

}  // namespace

AttentionKernel::AttentionKernel(Node node, const OrtKernelInfo* info)
    : node_(std::move(node)), bias_(kind_of_bias(node_.form, node_.type, info)) {}

OrtStatusPtr AttentionKernel::ComputeV2(OrtKernelContext* context) const noexcept {
  return as_status(node_.subject.c_str(), [&] { run(context); });
}

void AttentionKernel::run(OrtKernelContext* context) const {
  const Problem problem = read_problem(node_.form, node_.attributes, context);
  Work work;
  work.params = params_of(problem, node_);
  char message[256] = "";
  if (na_check(&work.params, message, sizeof message) != 0) refuse(message);
  if (bias_ == BiasKind::kZero) work.params.rel_pos_bias = nullptr;
  make_outputs(context, problem, work.params);
  std::optional<PaddedCopy> copy;
  if (reaches_behind(work.params)) work.params = copy.emplace(work.params).params();
  work.params.padding = nullptr;  // needed by nobody any more
  const std::shared_ptr<const Planned> planned = plans_.get(work.params, bias_ == BiasKind::kConstant);
  work.plan = &planned->plan;
  work.params.prepared_bias = planned->prepared_bias.get();
  const int64_t tasks = work.plan->tasks;
  if (tasks < 1) return;  // an empty batch

  static const int64_t most_pieces = kPiecesPerThread * std::max(1U, std::thread::hardware_concurrency());
  work.per_piece = (tasks + most_pieces - 1) / most_pieces;
  if (work.pieces() == 1 || multiply_adds(problem, node_.attributes) < kWorthSharing) {
    work.per_piece = tasks;
    Work::run_piece(&work, 0);
  } else {
    const auto pieces = static_cast<size_t>(work.pieces());
    Ort::ThrowOnError(Ort::GetApi().KernelContext_ParallelFor(context, &Work::run_piece, pieces, 0, &work));
  }
  if (work.failed) throw std::bad_alloc();
  if (copy) copy->crop();
}

}  // namespace na_deploy::ort
