// Results that a node keeps for sizes it has seen: the cut of the problem and, if its bias is a constant, the prepared
// bias.
#pragma once

#include <deque>
#include <memory>
#include <mutex>

#include "memory.h"
#include "na_cpu.h"

namespace na_deploy::cpu {

struct Planned {
  na_params sizes;  // sizes, types and a constant bias's place are compared; attributes are the node's
  na_cpu_plan plan;
  bool without_bias = false;          // the bias is a constant of zeros, and left out
  AlignedArray<float> prepared_bias;  // null unless the bias is a constant and preparing it pays
};

// The plans of the sizes that a node has seen last. Safe to use from several threads at once.
class PlanCache {
 public:
  // Returns the plan for checked parameters. A constant bias, whose memory must stay as it is while the node lives, is
  // kept in prepared form; one of zeros, which the exporter gives nodes with additional keys, is left out.
  std::shared_ptr<const Planned> get(const na_params& params, bool constant_bias);

 private:
  std::shared_ptr<const Planned> find(const na_params& params, bool constant_bias) const;

  std::mutex mutex_;
  std::deque<std::shared_ptr<const Planned>> kept_;  // the newest first
};

}  // namespace na_deploy::cpu
