#include "call.h"

#include <algorithm>
#include <new>

#include "padding.h"

namespace na_deploy::cpu {
namespace {

// Least number of multiply-adds to share: below it, waking other threads costs more than they save.
constexpr double kWorthSharing = 250e3;
// Pieces per thread in which tasks are handed out, so that a late thread finds work left.
constexpr int64_t kPiecesPerThread = 8;

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

}  // namespace

void* scratch_of_thread(size_t bytes) {
  thread_local Scratch scratch;
  return scratch.reserve(bytes);
}

Call::Call(const na_params& params, PlanCache& plans, bool constant_bias, int64_t threads) : params_(params) {
  const double worth = multiply_adds(params);
  if (reaches_behind(params)) params_ = copy_.emplace(params).params();
  params_.padding = nullptr;  // the copy has it
  planned_ = plans.get(params_, constant_bias);
  if (planned_->without_bias) params_.rel_pos_bias = nullptr;
  params_.prepared_bias = planned_->prepared_bias.get();
  const int64_t tasks = planned_->plan.tasks;
  if (tasks < 1) return;
  const int64_t most_pieces = threads < 2 || worth < kWorthSharing ? 1 : kPiecesPerThread * threads;
  tasks_per_piece_ = (tasks + most_pieces - 1) / most_pieces;
  pieces_ = (tasks + tasks_per_piece_ - 1) / tasks_per_piece_;
}

void Call::run(int64_t piece) noexcept {
  const int64_t first = piece * tasks_per_piece_;
  const int64_t last = std::min(first + tasks_per_piece_, planned_->plan.tasks);
  try {
    na_cpu_run(&params_, &planned_->plan, first, last, scratch_of_thread(planned_->plan.scratch_bytes));
  } catch (const std::bad_alloc&) {
    failed_ = true;
  }
}

void Call::finish() const {
  if (failed_) throw std::bad_alloc();
  if (copy_) copy_->crop();
}

}  // namespace na_deploy::cpu
