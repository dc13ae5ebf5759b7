#include "plan.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "../core/window.h"

namespace na_deploy {
namespace {

// Scores of this many bytes of keys, values and scores are held at once: half of a small second-level cache.
constexpr int64_t kBlockBytes = 128 << 10;
constexpr int64_t kMinBlock = 32;
constexpr int64_t kMaxBlock = 1024;
// Multiply-adds that handling one more key of a tile costs beside the products.
constexpr double kKeyOverhead = 12.0;

int64_t longest_group(const AxisPlan& axis) { return group_length(axis.length, axis.dilation, 0); }

// Keys that a tile of `tile` queries reads on one axis, about.
int64_t span(const AxisPlan& axis, int64_t tile) {
  const int64_t hops = tile % axis.stride == 0 ? tile / axis.stride - 1 : (tile + axis.stride - 2) / axis.stride;
  const int64_t reach = axis.is_causal ? tile - 1 : hops * axis.stride;
  return std::min(axis.kernel_size + reach, longest_group(axis));
}

// Chooses the tile with the least work, both products counted, over all that fit the lanes.
void choose_tile(Plan& plan, const na_params& params) {
  double best = std::numeric_limits<double>::infinity();
  int64_t chosen[kAxes] = {1, 1, 1};
  const int64_t group[kAxes] = {longest_group(plan.axis[0]), longest_group(plan.axis[1]), longest_group(plan.axis[2])};
  int64_t tile[kAxes];
  for (tile[0] = 1; tile[0] <= std::min(group[0], plan.lanes); ++tile[0]) {
    for (tile[1] = 1; tile[0] * tile[1] <= plan.lanes && tile[1] <= group[1]; ++tile[1]) {
      for (tile[2] = 1; tile[0] * tile[1] * tile[2] <= plan.lanes && tile[2] <= group[2]; ++tile[2]) {
        double tiles = 1.0;
        double keys = 1.0;
        for (int a = 0; a < kAxes; ++a) {
          tiles *= static_cast<double>((group[a] + tile[a] - 1) / tile[a]);
          keys *= static_cast<double>(span(plan.axis[a], tile[a]));
        }
        keys += static_cast<double>(params.additional);
        const auto queries = static_cast<double>(tile[0] * tile[1] * tile[2]);
        // The second product runs over values' channels, so its work grows with queries rather than with tiles.
        const double work = tiles * keys *
                            (static_cast<double>(params.head_dim) + kKeyOverhead +
                             static_cast<double>(params.value_dim) * queries / static_cast<double>(plan.lanes));
        if (work < best) {
          best = work;
          std::copy_n(tile, kAxes, chosen);
        }
      }
    }
  }
  for (int a = 0; a < kAxes; ++a) {
    plan.axis[a].tile = chosen[a];
    plan.axis[a].tiles = (group[a] + chosen[a] - 1) / chosen[a];
  }
}

Strides dense_strides(const Plan& plan, int64_t heads, int64_t width, int64_t copies, int64_t copy) {
  Strides strides;
  strides.offset = copy * heads * width;
  strides.head = width;
  int64_t step = copies * heads * width;
  for (int a = kAxes - 1; a >= 0; --a) {
    strides.axis[a] = step;
    step *= plan.axis[a].length;
  }
  strides.batch = step;
  return strides;
}

int64_t round_up(int64_t number, int64_t multiple) { return (number + multiple - 1) / multiple * multiple; }

}  // namespace

Plan make_plan(const na_params& params, int64_t lanes) {
  Plan plan;
  plan.lanes = lanes;
  plan.padded_dim = round_up(params.value_dim, lanes);
  const int leading = kAxes - params.rank;
  plan.bias_size = params.rel_pos_bias != nullptr ? 1 : 0;
  int64_t window = params.additional;
  int64_t most = 1;
  for (int a = 0; a < params.rank; ++a) {
    AxisPlan& axis = plan.axis[leading + a];
    axis.length = params.length[a];
    axis.kernel_size = params.kernel_size[a];
    axis.dilation = params.dilation[a];
    axis.stride = params.stride[a];
    axis.is_causal = params.is_causal[a] != 0;
    plan.bias_size *= 2 * axis.kernel_size - 1;
  }
  plan.scale = params.scale != 0.0F ? params.scale : 1.0F / std::sqrt(static_cast<float>(params.head_dim));
  choose_tile(plan, params);

  plan.tasks = params.batch * params.heads;
  for (const AxisPlan& axis : plan.axis) {
    plan.tasks *= axis.dilation * axis.tiles;
    most = std::min<int64_t>(most * std::min(axis.kernel_size + axis.tile + axis.stride, axis.length), kMaxBlock);
  }
  window = std::min(most + window, kMaxBlock);
  const int64_t row_bytes = 4 * (params.head_dim + plan.padded_dim + lanes);
  plan.block = std::min(window, std::max(kBlockBytes / row_bytes, kMinBlock));

  const bool packed = params.packed != 0;
  plan.query = dense_strides(plan, params.heads, params.head_dim, packed ? 3 : 1, 0);
  plan.key = dense_strides(plan, params.key_heads, params.head_dim, packed ? 3 : 1, packed ? 1 : 0);
  plan.value = dense_strides(plan, params.key_heads, params.value_dim, packed ? 3 : 1, packed ? 2 : 0);
  plan.output = dense_strides(plan, params.heads, params.value_dim, 1, 0);
  return plan;
}

Scratch lay_out(const Plan& plan, const na_params& params, void* memory) {
  constexpr size_t kAlignment = 64;
  auto* next = static_cast<char*>(memory);
  size_t used = 0;
  const auto take = [&](int64_t count, size_t element) {
    char* at = next == nullptr ? nullptr : next + used;
    used += (static_cast<size_t>(count) * element + kAlignment - 1) / kAlignment * kAlignment;
    return at;
  };
  const auto floats = [&](int64_t count) { return reinterpret_cast<float*>(take(count, sizeof(float))); };
  Scratch scratch{};
  scratch.query = floats(params.head_dim * plan.lanes);
  scratch.key = floats(plan.block * params.head_dim);
  scratch.value = floats(plan.block * plan.padded_dim);
  scratch.score = floats(plan.block * plan.lanes);
  scratch.output = floats(plan.lanes * plan.padded_dim);
  scratch.bias = floats(params.dtype == NA_FLOAT32 ? 0 : plan.bias_size);
  scratch.runs = reinterpret_cast<int64_t*>(take(plan.block * 5, sizeof(int64_t)));
  scratch.bytes = used;
  return scratch;
}

}  // namespace na_deploy
