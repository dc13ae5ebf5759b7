// The part of the C interface that is common to all instruction sets.
#include "na_cpu.h"

#include <algorithm>
#include <cstdio>

#include "../core/window.h"
#include "bias.h"
#include "plan.h"

namespace cpu = na_deploy::cpu;

namespace {

cpu::Plan full_plan(const na_params& params, const na_cpu_plan& plan) {
  cpu::Cut cut;
  std::copy_n(plan.tile, cpu::kAxes, cut.tile);
  std::copy_n(plan.quad, cpu::kAxes, cut.quad);
  return cpu::make_plan(params, cpu::target_in_use(), cut);
}

// Whether group_kernel.cpp takes the tasks. It needs the bias spread.
bool takes_groups(const cpu::Plan& plan, const na_params& params) {
  return plan.whole_group && (plan.bias_elements == 0 || params.prepared_bias != nullptr || plan.spread_per_call);
}

}  // namespace

extern "C" {

int na_cpu_check(const na_params* params, char* message, size_t size) {
  if (na_check(params, message, size) != 0) return 1;
  if (params->padding == nullptr) return 0;
  if (message != nullptr && size > 0) {
    std::snprintf(message, size, "the CPU kernels take no padding; give them a map that is filled up with it");
  }
  return 1;
}

void na_cpu_make_plan(const na_params* params, na_cpu_plan* plan) {
  const cpu::Plan full = cpu::make_plan(*params, cpu::target_in_use());
  plan->tasks = full.tasks;
  for (int a = 0; a < cpu::kAxes; ++a) {
    plan->tile[a] = full.axis[a].tile;
    plan->quad[a] = full.quads ? full.quad[a] : 0;
  }
  plan->scratch_bytes = cpu::lay_out(full, *params, nullptr).bytes;
  plan->prepared_bias_elements = static_cast<size_t>(full.spread.elements * params->heads);
}

void na_cpu_prepare_bias(const na_params* params, const na_cpu_plan* plan, float* prepared) {
  const cpu::Plan full = full_plan(*params, *plan);
  if (full.spread.elements == 0) return;
  for (int64_t head = 0; head < params->heads; ++head) {
    cpu::spread_bias(full, *params, head, prepared + head * full.spread.elements);
  }
}

void na_cpu_run(const na_params* params, const na_cpu_plan* plan, int64_t first, int64_t last, void* scratch) {
  const cpu::Plan full = full_plan(*params, *plan);
  const auto run = full.quads                    ? cpu::run_in_quads
                   : takes_groups(full, *params) ? cpu::run_in_groups
                                                 : cpu::run_in_tiles;
  run(*params, full, first, last, cpu::lay_out(full, *params, scratch));
}

void na_cpu_window_bounds(int64_t length, int64_t kernel_size, int64_t dilation, int64_t stride, int32_t is_causal,
                          int64_t* start, int64_t* end) {
  for (int64_t i = 0; i < length; ++i) {
    const int64_t size = na_deploy::group_length(length, dilation, i % dilation);
    const na_deploy::Window window = na_deploy::group_window(i / dilation, size, kernel_size, stride, is_causal != 0);
    start[i] = window.start;
    end[i] = window.end;
  }
}

}  // extern "C"
