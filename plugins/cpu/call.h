// One call of a node on the CPU: its plan, its padding and its pieces, which a runtime hands to threads of its own.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <optional>

#include "padded_copy.h"
#include "plan_cache.h"

namespace na_deploy::cpu {

class Call {
 public:
  // `params`: checked, with outputs. `threads`: those that may share the call. Throws std::bad_alloc.
  Call(const na_params& params, PlanCache& plans, bool constant_bias, int64_t threads);

  // Pieces to be run, in any order and on any thread: none for an empty batch, one where sharing does not pay.
  int64_t pieces() const { return pieces_; }

  void run(int64_t piece) noexcept;

  // Completes the outputs once all pieces have run. Throws std::bad_alloc where a thread had no memory for its scratch.
  void finish() const;

 private:
  na_params params_;
  std::optional<PaddedCopy> copy_;
  std::shared_ptr<const Planned> planned_;
  int64_t pieces_ = 0;
  int64_t tasks_per_piece_ = 0;
  std::atomic<bool> failed_{false};
};

}  // namespace na_deploy::cpu
