#include "plan.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "../core/window.h"

namespace na_deploy {
namespace {

// Keys, values and scores of a block: most of a first-level cache.
constexpr int64_t kBlockBytes = 40 << 10;
constexpr int64_t kMinBlock = 32;
constexpr int64_t kMaxBlock = 1024;
// One head's spread bias at most: what still leaves room in a second-level cache.
constexpr int64_t kMaxSpreadBytes = 128 << 10;
// Work beside the products for one key of a tile, in multiply-adds.
constexpr double kKeyOverhead = 24.0;
constexpr double kLog2E = 1.4426950408889634;

int64_t round_up(int64_t number, int64_t multiple) { return (number + multiple - 1) / multiple * multiple; }

int64_t longest_group(const AxisPlan& axis) { return group_length(axis.length, axis.dilation, 0); }

// Keys that a tile of `tile` queries reads on one axis at most: windows start at the same place within a stride group.
int64_t span(const AxisPlan& axis, int64_t tile) {
  const int64_t hops = tile % axis.stride == 0 ? tile / axis.stride - 1 : (tile + axis.stride - 2) / axis.stride;
  return std::min(axis.kernel_size + hops * axis.stride, longest_group(axis));
}

// Multiply-adds, about, of all tiles of one head.
double work(const Plan& plan, const na_params& params, const int64_t (&tile)[kAxes]) {
  double tiles = 1.0;
  double keys = 1.0;
  for (int a = 0; a < kAxes; ++a) {
    tiles *= static_cast<double>((longest_group(plan.axis[a]) + tile[a] - 1) / tile[a]);
    keys *= static_cast<double>(span(plan.axis[a], tile[a]));
  }
  keys += static_cast<double>(params.additional);
  const auto queries = static_cast<double>(tile[0] * tile[1] * tile[2]);
  // The second product runs over values' channels, so its work grows with queries rather than with tiles.
  return tiles * keys *
         (static_cast<double>(params.head_dim) + kKeyOverhead +
          static_cast<double>(params.value_dim) * queries / static_cast<double>(plan.lanes));
}

void choose_tile(const Plan& plan, const na_params& params, int64_t (&chosen)[kAxes]) {
  double best = std::numeric_limits<double>::infinity();
  int64_t group[kAxes];
  for (int a = 0; a < kAxes; ++a) group[a] = std::min(longest_group(plan.axis[a]), plan.lanes);
  int64_t tile[kAxes];
  for (tile[0] = 1; tile[0] <= group[0]; ++tile[0]) {
    for (tile[1] = 1; tile[1] <= group[1] && tile[0] * tile[1] <= plan.lanes; ++tile[1]) {
      for (tile[2] = 1; tile[2] <= group[2] && tile[0] * tile[1] * tile[2] <= plan.lanes; ++tile[2]) {
        const double candidate = work(plan, params, tile);
        if (candidate < best) {
          best = candidate;
          std::copy_n(tile, kAxes, chosen);
        }
      }
    }
  }
}

// Gives every query of the tile a lane. Four consecutive lanes are as near to a square as the tile allows: they see
// nearly the same keys.
void place_lanes(Plan& plan) {
  int64_t quad[kAxes] = {1, 1, 1};
  for (int64_t size = 1; size < kQuad; size *= 2) {
    int widest = -1;
    for (int a = kAxes - 1; a >= 0; --a) {
      const int64_t tile = plan.axis[a].tile;
      if (tile % (2 * quad[a]) == 0 && (widest < 0 || quad[a] < quad[widest])) widest = a;
    }
    if (widest >= 0) quad[widest] *= 2;
  }
  plan.used_lanes = 0;
  int64_t outer[kAxes];
  int64_t inner[kAxes];
  for (outer[0] = 0; outer[0] < plan.axis[0].tile; outer[0] += quad[0]) {
    for (outer[1] = 0; outer[1] < plan.axis[1].tile; outer[1] += quad[1]) {
      for (outer[2] = 0; outer[2] < plan.axis[2].tile; outer[2] += quad[2]) {
        for (inner[0] = 0; inner[0] < quad[0]; ++inner[0]) {
          for (inner[1] = 0; inner[1] < quad[1]; ++inner[1]) {
            for (inner[2] = 0; inner[2] < quad[2]; ++inner[2]) {
              for (int a = 0; a < kAxes; ++a) {
                const int64_t place = outer[a] + inner[a];
                plan.place[plan.used_lanes][a] = place;
                plan.lanes_at[a][place] |= 1U << plan.used_lanes;
              }
              ++plan.used_lanes;
            }
          }
        }
      }
    }
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

void plan_bias(Plan& plan, const na_params& params) {
  if (params.rel_pos_bias == nullptr) return;
  plan.bias_elements = 1;
  double rows = 1.0;
  double keys = 1.0;
  double tiles = static_cast<double>(params.batch);
  for (int a = 0; a < kAxes; ++a) {
    const AxisPlan& axis = plan.axis[a];
    plan.bias_elements *= 2 * axis.kernel_size - 1;
    plan.spread.width[a] = 2 * axis.kernel_size - 1 + axis.tile - 1;
    rows *= static_cast<double>(plan.spread.width[a]);
    keys *= static_cast<double>(axis.span);
    tiles *= static_cast<double>(axis.dilation * axis.tiles);
  }
  if (rows * static_cast<double>(plan.lanes) * sizeof(float) > static_cast<double>(kMaxSpreadBytes)) return;
  plan.spread.elements = static_cast<int64_t>(rows) * plan.lanes;
  // Some threads share a head, and each spreads its bias anew.
  plan.spread_per_call = tiles * keys >= 4.0 * rows;
}

// Everything about the axes but the tile.
Plan axes_of(const na_params& params, int64_t lanes) {
  Plan plan;
  plan.lanes = lanes;
  const int leading = kAxes - params.rank;
  for (int a = 0; a < params.rank; ++a) {
    AxisPlan& axis = plan.axis[leading + a];
    axis.length = params.length[a];
    axis.kernel_size = params.kernel_size[a];
    axis.dilation = params.dilation[a];
    axis.stride = params.stride[a];
    axis.is_causal = params.is_causal[a] != 0;
  }
  return plan;
}

}  // namespace

Plan make_plan(const na_params& params, int64_t lanes) {
  int64_t tile[kAxes] = {1, 1, 1};
  choose_tile(axes_of(params, lanes), params, tile);
  return make_plan(params, lanes, tile);
}

Plan make_plan(const na_params& params, int64_t lanes, const int64_t (&tile)[kAxes]) {
  Plan plan = axes_of(params, lanes);
  plan.padded_head_dim = round_up(params.head_dim, lanes);
  plan.padded_value_dim = round_up(params.value_dim, lanes);
  plan.keys_in_place = params.dtype == NA_FLOAT32;
  plan.values_in_place = params.dtype == NA_FLOAT32 && plan.padded_value_dim == params.value_dim;
  const double scale =
      params.scale != 0.0F ? static_cast<double>(params.scale) : 1.0 / std::sqrt(static_cast<double>(params.head_dim));
  plan.scale = static_cast<float>(scale * kLog2E);

  plan.tasks = params.batch * params.heads;
  int64_t box = 1;
  for (int a = 0; a < kAxes; ++a) {
    AxisPlan& axis = plan.axis[a];
    axis.tile = tile[a];
    axis.tiles = (longest_group(axis) + tile[a] - 1) / tile[a];
    axis.span = span(axis, tile[a]);
    plan.tasks *= axis.dilation * axis.tiles;
    box = std::min(box * axis.span, kMaxBlock);
  }
  place_lanes(plan);
  const int64_t row_bytes = 4 * (plan.padded_head_dim + plan.padded_value_dim + lanes);
  const int64_t keys =
      std::min({box + std::min(params.additional, kMaxBlock), kMaxBlock, std::max(kBlockBytes / row_bytes, kMinBlock)});
  plan.block = keys;
  plan_bias(plan, params);

  const bool packed = params.packed != 0;
  plan.query = dense_strides(plan, params.heads, params.head_dim, packed ? 3 : 1, 0);
  plan.key = dense_strides(plan, params.key_heads, params.head_dim, packed ? 3 : 1, packed ? 1 : 0);
  plan.value = dense_strides(plan, params.key_heads, params.value_dim, packed ? 3 : 1, packed ? 2 : 0);
  plan.output = dense_strides(plan, params.heads, params.value_dim, 1, 0);
  for (int64_t lane = 0; lane < plan.used_lanes; ++lane) {
    for (int a = 0; a < kAxes; ++a) {
      plan.lane_query[lane] += plan.place[lane][a] * plan.axis[a].dilation * plan.query.axis[a];
      plan.lane_output[lane] += plan.place[lane][a] * plan.axis[a].dilation * plan.output.axis[a];
    }
  }
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
  scratch.query = floats(plan.padded_head_dim * plan.lanes);
  scratch.key = floats((plan.keys_in_place ? kQuad : std::max(plan.block, kQuad)) * plan.padded_head_dim);
  scratch.key_rows = reinterpret_cast<const float**>(take(plan.block, sizeof(float*)));
  scratch.value = floats(plan.values_in_place ? 0 : plan.block * plan.padded_value_dim);
  scratch.score = floats(plan.block * plan.lanes);
  scratch.output = floats(plan.lanes * plan.padded_value_dim);
  scratch.bias = floats(params.dtype == NA_FLOAT32 ? 0 : plan.bias_elements);
  scratch.spread = floats(plan.spread_per_call ? plan.spread.elements : 0);
  for (int a = 0; a < kAxes; ++a) {
    scratch.visible[a] = reinterpret_cast<uint32_t*>(take(plan.axis[a].span, sizeof(uint32_t)));
  }
  scratch.runs = reinterpret_cast<KeyRun*>(take(plan.block, sizeof(KeyRun)));
  scratch.bytes = used;
  return scratch;
}

}  // namespace na_deploy
