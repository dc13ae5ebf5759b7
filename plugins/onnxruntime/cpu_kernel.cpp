#include "cpu_kernel.h"

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

namespace na_deploy::ort {
namespace {

// Least number of multiply-adds to share: below it, waking other threads costs more than they save.
constexpr double kWorthSharing = 250e3;
// Pieces per thread in which tasks are handed out, so that a late thread finds work left.
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

// One call on ONNX Runtime's threads: piece i is the tasks [i * per_piece, (i + 1) * per_piece).
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
double multiply_adds(const na_params& p) {
  double queries = static_cast<double>(p.batch * p.heads);
  double keys = 1.0;
  for (int axis = 0; axis < p.rank; ++axis) {
    queries *= static_cast<double>(p.length[axis]);
    keys *= static_cast<double>(p.kernel_size[axis]);
  }
  return queries * (keys + static_cast<double>(p.additional)) * static_cast<double>(p.head_dim + p.value_dim);
}

// Returns the kind of the node's bias. A bias of zeros, which the exporter gives nodes with additional keys, is kZero.
BiasKind kind_of_bias(const na_params& params, const OrtKernelInfo* info) {
  const auto index = static_cast<size_t>(bias_input(kind_of(params)));
  const Ort::ConstKernelInfo node{info};
  if (index >= node.GetInputCount() || node.GetInputName(index).empty()) return BiasKind::kVariable;
  int is_constant = 0;
  const Ort::ConstValue tensor = node.GetTensorConstantInput(index, &is_constant);
  if (static_cast<const OrtValue*>(tensor) == nullptr || is_constant == 0) return BiasKind::kVariable;
  const size_t width = params.dtype == NA_FLOAT32 ? sizeof(float) : sizeof(uint16_t);
  const auto* bytes = static_cast<const unsigned char*>(tensor.GetTensorRawData());
  const size_t count = tensor.GetTensorTypeAndShapeInfo().GetElementCount() * width;
  const bool zero = std::all_of(bytes, bytes + count, [](unsigned char byte) { return byte == 0; });
  return zero ? BiasKind::kZero : BiasKind::kConstant;
}

}  // namespace

CpuKernel::CpuKernel(Node node, const OrtKernelInfo* info)
    : node_(std::move(node)), bias_(kind_of_bias(node_.params, info)) {}

OrtStatusPtr CpuKernel::ComputeV2(OrtKernelContext* context) const noexcept {
  return as_status(node_.subject.c_str(), [&] { run(context); });
}

void CpuKernel::run(OrtKernelContext* context) const {
  Work work;
  work.params = read_call(node_, context);
  if (bias_ == BiasKind::kZero) work.params.rel_pos_bias = nullptr;
  make_outputs(context, work.params);
  const double worth = multiply_adds(work.params);
  std::optional<PaddedCopy> copy;
  if (reaches_behind(work.params)) work.params = copy.emplace(work.params).params();
  work.params.padding = nullptr;  // the copy has it
  const std::shared_ptr<const Planned> planned = plans_.get(work.params, bias_ == BiasKind::kConstant);
  work.plan = &planned->plan;
  work.params.prepared_bias = planned->prepared_bias.get();
  const int64_t tasks = work.plan->tasks;
  if (tasks < 1) return;  // an empty batch

  static const int64_t most_pieces = kPiecesPerThread * std::max(1U, std::thread::hardware_concurrency());
  work.per_piece = (tasks + most_pieces - 1) / most_pieces;
  if (work.pieces() == 1 || worth < kWorthSharing) {
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
