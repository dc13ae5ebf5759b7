#include "plan_cache.h"

#include "operator.h"

namespace na_deploy::ort {

std::shared_ptr<const Planned> PlanCache::get(const na_params& params, bool constant_bias) {
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (last_ != nullptr && same_sizes(last_->sizes, params)) return last_;
  }
  auto planned = std::make_shared<Planned>();
  planned->sizes = params;
  na_cpu_make_plan(&params, &planned->plan);
  if (constant_bias && params.rel_pos_bias != nullptr && planned->plan.prepared_bias_elements > 0) {
    planned->prepared_bias = make_aligned<float>(planned->plan.prepared_bias_elements);
    na_cpu_prepare_bias(&params, &planned->plan, planned->prepared_bias.get());
  }
  const std::lock_guard<std::mutex> lock(mutex_);
  last_ = planned;
  return planned;
}

}  // namespace na_deploy::ort
