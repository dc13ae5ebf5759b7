#include "plan_cache.h"

#include <algorithm>
#include <cstddef>

#include "operator.h"

namespace na_deploy::cpu {
namespace {

// Sizes that alternate, such as those of several callers, find their plans again.
constexpr size_t kMostPlans = 4;

bool bias_is_zero(const na_params& params) {
  size_t count = static_cast<size_t>(params.heads);
  for (int axis = 0; axis < params.rank; ++axis) count *= static_cast<size_t>(2 * params.kernel_size[axis] - 1);
  const bool wide = params.dtype == NA_FLOAT32 || params.bias_is_float32 != 0;
  const size_t bytes = count * (wide ? sizeof(float) : sizeof(uint16_t));
  const auto* bias = static_cast<const unsigned char*>(params.rel_pos_bias);
  return std::all_of(bias, bias + bytes, [](unsigned char byte) { return byte == 0; });
}

std::shared_ptr<const Planned> make_planned(na_params params, bool constant_bias) {
  auto planned = std::make_shared<Planned>();
  planned->sizes = params;
  planned->without_bias = constant_bias && params.rel_pos_bias != nullptr && bias_is_zero(params);
  if (planned->without_bias) params.rel_pos_bias = nullptr;
  na_cpu_make_plan(&params, &planned->plan);
  if (constant_bias && params.rel_pos_bias != nullptr && planned->plan.prepared_bias_elements > 0) {
    planned->prepared_bias = make_aligned<float>(planned->plan.prepared_bias_elements);
    na_cpu_prepare_bias(&params, &planned->plan, planned->prepared_bias.get());
  }
  return planned;
}

}  // namespace

std::shared_ptr<const Planned> PlanCache::find(const na_params& params, bool constant_bias) const {
  for (const auto& planned : kept_) {
    const na_params& seen = planned->sizes;
    const bool same_bias = constant_bias ? seen.rel_pos_bias == params.rel_pos_bias
                                         : (seen.rel_pos_bias == nullptr) == (params.rel_pos_bias == nullptr);
    if (same_bias && seen.dtype == params.dtype && same_sizes(seen, params)) return planned;
  }
  return nullptr;
}

std::shared_ptr<const Planned> PlanCache::get(const na_params& params, bool constant_bias) {
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (auto planned = find(params, constant_bias)) return planned;
  }
  std::shared_ptr<const Planned> planned = make_planned(params, constant_bias);
  const std::lock_guard<std::mutex> lock(mutex_);
  if (auto other = find(params, constant_bias)) return other;  // a call beside this one was faster
  kept_.push_front(planned);
  if (kept_.size() > kMostPlans) kept_.pop_back();
  return planned;
}

}  // namespace na_deploy::cpu
