#include "single_query.h"

#include <cmath>
#include <limits>
#include <vector>

#include "../core/window.h"
#include "bias.h"
#include "numbers.h"

namespace na_deploy::cpu {
namespace {

constexpr double kLog2E = 1.4426950408889634;
constexpr double kLn2 = 0.6931471805599453;
constexpr double kInfinity = std::numeric_limits<double>::infinity();

// The weighted sum of the values so far, with weights relative to the largest score. Scores are exponents of two.
struct RunningSum {
  const na_params& params;
  std::vector<double> query;
  std::vector<double> channel;
  double peak = -kInfinity;
  double total = 0.0;

  // Adds the key and the value that begin at these elements of their tensors.
  void add(const void* keys, int64_t key_at, const void* values, int64_t value_at, double bias) {
    double score = bias;
    for (size_t c = 0; c < query.size(); ++c) {
      score += query[c] * number_at(keys, params.dtype, key_at + static_cast<int64_t>(c));
    }
    const double higher = score > peak ? score : peak;
    const double base = higher == -kInfinity ? 0.0 : higher;  // scores of -infinity, also the first, weigh nothing
    const double fade = std::exp2(peak - base);
    const double weight = std::exp2(score - base);
    total = total * fade + weight;
    for (size_t c = 0; c < channel.size(); ++c) {
      channel[c] = channel[c] * fade + weight * number_at(values, params.dtype, value_at + static_cast<int64_t>(c));
    }
    peak = higher;
  }
};

}  // namespace

void attend_singly(const na_params& params, const Plan& plan, const Tile& tile, int64_t lane) {
  const int64_t key_head = tile.head / (params.heads / params.key_heads);
  RunningSum sum{params, std::vector<double>(static_cast<size_t>(params.head_dim)),
                 std::vector<double>(static_cast<size_t>(params.value_dim))};
  for (size_t c = 0; c < sum.query.size(); ++c) {
    const int64_t at = tile.query_at + plan.lane_query[lane] + static_cast<int64_t>(c);
    sum.query[c] = double{plan.scale} * number_at(params.query, params.dtype, at);
  }
  int64_t own[kAxes];
  Window window[kAxes];
  for (int a = 0; a < kAxes; ++a) {
    const AxisPlan& axis = plan.axis[a];
    own[a] = tile.axis[a].origin + plan.place[lane][a];
    const int64_t size = group_length(axis.length, axis.dilation, tile.axis[a].group);
    window[a] = group_window(own[a], size, axis.kernel_size, axis.stride, axis.is_causal);
  }
  const void* keys = params.packed != 0 ? params.query : params.key;
  const void* values = params.packed != 0 ? params.query : params.value;
  int64_t key[kAxes];
  for (key[0] = window[0].start; key[0] < window[0].end; ++key[0]) {
    for (key[1] = window[1].start; key[1] < window[1].end; ++key[1]) {
      for (key[2] = window[2].start; key[2] < window[2].end; ++key[2]) {
        double bias = 0.0;
        if (params.rel_pos_bias != nullptr) {
          int64_t index = tile.head;
          for (int a = 0; a < kAxes; ++a) {
            const int64_t kernel_size = plan.axis[a].kernel_size;
            index = index * (2 * kernel_size - 1) + key[a] - own[a] + kernel_size - 1;
          }
          bias = kLog2E * number_at(params.rel_pos_bias, bias_dtype(params), index);
        }
        sum.add(keys, offset_of(plan, plan.key, tile, key_head, key), values,
                offset_of(plan, plan.value, tile, key_head, key), bias);
      }
    }
  }
  for (int64_t m = 0; m < params.additional; ++m) {
    const int64_t row = (tile.batch * params.additional + m) * params.key_heads + key_head;
    sum.add(params.additional_key, row * params.head_dim, params.additional_value, row * params.value_dim, 0.0);
  }
  const int64_t to = tile.output_at + plan.lane_output[lane];
  for (size_t c = 0; c < sum.channel.size(); ++c) {
    set_number(params.output, params.dtype, to + static_cast<int64_t>(c),
               static_cast<float>(sum.channel[c] / sum.total));
  }
  if (params.lse != nullptr) {
    params.lse[to / params.value_dim] = static_cast<float>((sum.peak + std::log2(sum.total)) * kLn2);
  }
}

}  // namespace na_deploy::cpu
