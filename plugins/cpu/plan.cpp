#include "plan.h"

#include <algorithm>
#include <cmath>
#include <iterator>
#include <limits>

#include "../core/window.h"
#include "bias.h"

namespace na_deploy::cpu {
namespace {

// Bytes of the keys, values and scores of a block: most of a first-level cache.
constexpr int64_t kBlockBytes = 40 << 10;
constexpr int64_t kMinBlock = 32;
constexpr int64_t kMaxBlock = 1024;
// Largest spread bias of one head. In a model, larger ones are slower to fetch than biases are to gather.
constexpr int64_t kMaxSpreadBytes = 32 << 10;
constexpr double kLog2E = 1.4426950408889634;

int64_t round_up(int64_t number, int64_t multiple) { return (number + multiple - 1) / multiple * multiple; }

int64_t longest_group(const AxisPlan& axis) { return group_length(axis.length, axis.dilation, 0); }

// Keys that a tile of `tile` queries reads on one axis at most: windows start at the same place within a stride group.
int64_t span(const AxisPlan& axis, int64_t tile) {
  const int64_t hops = tile % axis.stride == 0 ? tile / axis.stride - 1 : (tile + axis.stride - 2) / axis.stride;
  return std::min(axis.kernel_size + hops * axis.stride, longest_group(axis));
}

// Chooses four consecutive lanes as near to a cube as the tile allows, so that they see nearly the same keys.
void choose_quad(const int64_t (&tile)[kAxes], int64_t (&quad)[kAxes]) {
  std::fill_n(quad, kAxes, 1);
  for (int64_t size = 1; size < kQuad; size *= 2) {
    int widest = -1;
    for (int a = kAxes - 1; a >= 0; --a) {
      if (tile[a] % (2 * quad[a]) == 0 && (widest < 0 || quad[a] < quad[widest])) widest = a;
    }
    if (widest >= 0) quad[widest] *= 2;
  }
}

// Estimates the cycles that all tiles of one head take. The numbers fit a processor with two multiply-adds and two
// loads a cycle; only comparisons between tiles matter.
double cost(const Plan& plan, const na_params& params, const int64_t (&tile)[kAxes]) {
  // Cycles of a multiply-add of the first product, by vectors: a key's number is loaded once for all of them.
  constexpr double kScore[kMaxVectors + 1] = {0.0, 0.70, 0.56, 0.60, 0.53};
  constexpr double kValue = 0.60;
  constexpr double kSoftmax = 14.0;  // for a key and a vector
  constexpr double kKey = 6.0;
  // For a cache line from the second level, where a tile's keys and values overflow the first.
  constexpr double kLine = 4.0;
  constexpr double kFirstLevel = 40 << 10;
  constexpr double kQuery = 60.0;
  constexpr double kTile = 500.0;
  int64_t quad[kAxes];
  choose_quad(tile, quad);
  double tiles = 1.0;
  double keys = 1.0;
  double quad_keys = 1.0;
  for (int a = 0; a < kAxes; ++a) {
    tiles *= static_cast<double>((longest_group(plan.axis[a]) + tile[a] - 1) / tile[a]);
    keys *= static_cast<double>(span(plan.axis[a], tile[a]));
    quad_keys *= static_cast<double>(span(plan.axis[a], quad[a]));
  }
  keys += static_cast<double>(params.additional);
  quad_keys += static_cast<double>(params.additional);
  const int64_t queries = tile[0] * tile[1] * tile[2];
  const int64_t vectors = (queries + plan.vector - 1) / plan.vector;
  const auto quads = static_cast<double>((queries + kQuad - 1) / kQuad);
  const auto channels = static_cast<double>(round_up(params.value_dim, plan.vector) / plan.vector);
  const auto wide = static_cast<double>(vectors);
  const double copies = vectors > 1 ? 3.0 * channels : 0.0;
  const auto bytes = static_cast<double>(4 * (params.head_dim + params.value_dim));
  const double loads = keys * bytes > kFirstLevel ? kLine * bytes / 64.0 : 0.0;
  return tiles * (keys * (static_cast<double>(params.head_dim) * wide * kScore[vectors] + kSoftmax * wide + kKey +
                          copies + loads) +
                  quads * quad_keys * channels * static_cast<double>(kQuad) * kValue +
                  kQuery * static_cast<double>(queries) + kTile);
}

// The cut into tiles of whole vectors with the least cost, and that cost.
double choose_tile(const Plan& plan, const na_params& params, Cut& chosen) {
  double best = std::numeric_limits<double>::infinity();
  const int64_t most = plan.vector * kMaxVectors;
  int64_t group[kAxes];
  for (int a = 0; a < kAxes; ++a) group[a] = std::min(longest_group(plan.axis[a]), most);
  int64_t tile[kAxes];
  for (tile[0] = 1; tile[0] <= group[0]; ++tile[0]) {
    for (tile[1] = 1; tile[1] <= group[1] && tile[0] * tile[1] <= most; ++tile[1]) {
      for (tile[2] = 1; tile[2] <= group[2] && tile[0] * tile[1] * tile[2] <= most; ++tile[2]) {
        const double candidate = cost(plan, params, tile);
        if (candidate < best) {
          best = candidate;
          std::copy_n(tile, kAxes, chosen.tile);
        }
      }
    }
  }
  return best;
}

// Keys that four queries read, rows padded to whole groups.
int64_t quad_keys(const Plan& plan, const int64_t (&quad)[kAxes]) {
  return span(plan.axis[0], quad[0]) * span(plan.axis[1], quad[1]) *
         round_up(span(plan.axis[2], quad[2]), plan.vector / kQuad);
}

// The cut into quads, if quad_kernel.cpp can take the problem and it costs less than `limit`.
bool choose_quads(const Plan& plan, const na_params& params, double limit, Cut& chosen) {
  constexpr double kScore = 0.72;
  constexpr double kValue = 0.60;
  constexpr double kSoftmax = 14.0;  // for a group of keys
  constexpr double kKey = 3.0;
  constexpr double kOverhead = 300.0;  // for a quad
  if (plan.vector <= kQuad || params.additional > 0) return false;
  int64_t group[kAxes];
  for (int a = 0; a < kAxes; ++a) group[a] = longest_group(plan.axis[a]);
  // Shapes as near to a square as the map allows; a line on a single axis.
  const int64_t shapes[][kAxes] = {{1, 2, 2}, {1, 1, 4}, {2, 1, 2}, {2, 2, 1}, {1, 4, 1}, {4, 1, 1}};
  double best = limit;
  const auto in_group = static_cast<double>(plan.vector / kQuad);
  const auto channels = static_cast<double>(round_up(params.value_dim, plan.vector) / plan.vector);
  for (const int64_t (&quad)[kAxes] : shapes) {
    if (quad[0] > group[0] || quad[1] > group[1] || quad[2] > group[2]) continue;
    const int64_t keys = quad_keys(plan, quad);
    if (keys > kMaxQuadKeys) continue;
    double quads = 1.0;
    for (int a = 0; a < kAxes; ++a) quads *= static_cast<double>((group[a] + quad[a] - 1) / quad[a]);
    const double candidate =
        quads * (static_cast<double>(keys) * (static_cast<double>(params.head_dim) / in_group * kScore +
                                              channels * kQuad * kValue + kSoftmax / in_group + kKey) +
                 kOverhead);
    if (candidate >= best) continue;
    best = candidate;
    std::copy_n(quad, kAxes, chosen.quad);
    // A task takes up to sixteen quads, as many along the last axis as divide the map evenly.
    int64_t room = kMaxLanes / kQuad;
    for (int a = kAxes - 1; a >= 0; --a) {
      const int64_t count = (group[a] + quad[a] - 1) / quad[a];
      const int64_t most = std::min<int64_t>(room, 8);
      const int64_t tiles = (count + most - 1) / most;
      const int64_t along = (count + tiles - 1) / tiles;
      chosen.tile[a] = along * quad[a];
      room /= along;
    }
  }
  return chosen.quad[0] > 0;
}

// Gives every query of the tile a lane.
void place_lanes(Plan& plan) {
  const int64_t (&quad)[kAxes] = plan.quad;
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
                plan.lanes_at[a][place] |= uint64_t{1} << plan.used_lanes;
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
    plan.spread.width[a] = 2 * axis.kernel_size - 1 + (plan.quads ? plan.quad[a] : axis.tile) - 1;
    if (!plan.quads && axis.tiles == 1) {  // the origin is the group's first element
      plan.spread.base[a] = axis.kernel_size - 1;
      plan.spread.width[a] = longest_group(axis);
    }
    rows *= static_cast<double>(plan.spread.width[a]);
    keys *= static_cast<double>(axis.span);
    tiles *= static_cast<double>(axis.dilation * axis.tiles);
  }
  const int64_t lanes = plan.quads ? plan.vector : plan.lanes;
  if (rows * static_cast<double>(lanes) * sizeof(float) > static_cast<double>(kMaxSpreadBytes)) return;
  plan.spread.elements = static_cast<int64_t>(rows) * lanes;
  // Several threads share a head, and each spreads its bias anew.
  plan.spread_per_call = plan.quads || tiles * keys >= 4.0 * rows;
}

// Returns whether every query sees every key of its dilation group: all groups have kernel_size positions.
bool has_dense_groups(const Plan& plan, const na_params& params) {
  return params.additional == 0 && std::all_of(std::begin(plan.axis), std::end(plan.axis), [](const AxisPlan& axis) {
           return axis.length == axis.kernel_size * axis.dilation && !axis.is_causal;
         });
}

// The cut into whole dilation groups, if group_kernel.cpp can take them. Quads take groups that leave half of a vector
// empty.
bool choose_groups(const Plan& plan, const na_params& params, Cut& chosen) {
  if (!has_dense_groups(plan, params)) return false;
  int64_t queries = 1;
  for (int a = 0; a < kAxes; ++a) {
    chosen.tile[a] = plan.axis[a].kernel_size;
    if (chosen.tile[a] > kMaxLanes) return false;
    queries *= chosen.tile[a];
  }
  return queries > std::max(kQuad, plan.vector / 2) && queries <= kMaxLanes;
}

// Plans everything about the axes but the tile.
Plan axes_of(const na_params& params, int64_t vector) {
  Plan plan;
  plan.vector = vector;
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

Plan make_plan(const na_params& params, const Target& target) {
  const Plan axes = axes_of(params, target.vector);
  Cut cut;
  if (choose_groups(axes, params, cut)) return make_plan(params, target, cut);
  const double limit = choose_tile(axes, params, cut);
  Cut quads;
  if (choose_quads(axes, params, limit, quads)) {
    const Plan plan = make_plan(params, target, quads);
    // Quads need the bias spread: they cannot gather it.
    if (plan.bias_elements == 0 || plan.spread.elements != 0) return plan;
  }
  return make_plan(params, target, cut);
}

Plan make_plan(const na_params& params, const Target& target, const Cut& cut) {
  const int64_t vector = target.vector;
  Plan plan = axes_of(params, vector);
  plan.quads = cut.quad[0] > 0;
  const int64_t channels_at_once = plan.quads ? vector / kQuad * 2 : 2;
  plan.dots = target.dots && params.dtype == NA_BFLOAT16 && params.head_dim % channels_at_once == 0;
  plan.padded_head_dim = round_up(params.head_dim, vector);
  plan.padded_value_dim = round_up(params.value_dim, vector);
  const double scale =
      params.scale != 0.0F ? static_cast<double>(params.scale) : 1.0 / std::sqrt(static_cast<double>(params.head_dim));
  plan.scale = static_cast<float>(scale * kLog2E);

  plan.tasks = params.batch * params.heads;
  int64_t box = 1;
  for (int a = 0; a < kAxes; ++a) {
    AxisPlan& axis = plan.axis[a];
    axis.tile = cut.tile[a];
    axis.tiles = (longest_group(axis) + axis.tile - 1) / axis.tile;
    axis.span = span(axis, axis.tile);
    plan.tasks *= axis.dilation * axis.tiles;
    box = std::min(box * axis.span, kMaxBlock);
  }
  if (plan.quads) {
    std::copy_n(cut.quad, kAxes, plan.quad);
  } else {
    choose_quad(cut.tile, plan.quad);
  }
  place_lanes(plan);
  plan.lanes = round_up(plan.used_lanes, vector);
  plan.whole_group =
      !plan.quads && has_dense_groups(plan, params) &&
      std::all_of(std::begin(plan.axis), std::end(plan.axis), [](const AxisPlan& axis) { return axis.tiles == 1; });
  // Copying pays for rows that several quads read repeatedly: in the tensor, they may compete for a few sets of the
  // cache.
  plan.values_in_place = params.dtype == NA_FLOAT32 && plan.padded_value_dim == params.value_dim &&
                         ((plan.lanes == vector && !plan.whole_group) || plan.quads);
  plan.keys_in_place =
      plan.dots || (params.dtype == NA_FLOAT32 && (!plan.quads || plan.padded_head_dim == params.head_dim));
  const int64_t row_bytes = 4 * (plan.padded_head_dim + plan.padded_value_dim + plan.lanes);
  const int64_t keys =
      std::min({box + std::min(params.additional, kMaxBlock), kMaxBlock, std::max(kBlockBytes / row_bytes, kMinBlock)});
  plan.block = plan.quads ? quad_keys(plan, plan.quad) : plan.whole_group ? plan.used_lanes : keys;
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
  const int64_t lanes = plan.quads ? kQuad : plan.lanes;  // lanes whose scores and outputs are held at once
  int64_t copies = plan.block;                            // rows of keys and values
  if (plan.quads) copies = plan.axis[0].span * plan.axis[1].span * plan.axis[2].span;
  scratch.query = floats(plan.padded_head_dim * lanes);
  scratch.key = floats((plan.keys_in_place ? kQuad : std::max(copies, kQuad)) * plan.padded_head_dim);
  scratch.key_rows = reinterpret_cast<const float**>(take(plan.block, sizeof(float*)));
  scratch.value = floats(plan.values_in_place ? 0 : copies * plan.padded_value_dim);
  const int64_t value_rows = plan.dots && !plan.quads ? plan.block : 0;
  scratch.value_rows = reinterpret_cast<const void**>(take(value_rows, sizeof(void*)));
  scratch.score = floats(plan.block * lanes);
  scratch.output = floats(std::max(lanes * plan.padded_value_dim, plan.padded_head_dim));
  scratch.bias = floats(bias_dtype(params) == NA_FLOAT32 ? 0 : plan.bias_elements);
  scratch.spread = floats(plan.spread_per_call ? plan.spread.elements : 0);
  for (int a = 0; a < kAxes; ++a) {
    scratch.visible[a] = reinterpret_cast<uint64_t*>(take(plan.axis[a].span, sizeof(uint64_t)));
  }
  scratch.runs = reinterpret_cast<KeyRun*>(take(plan.block, sizeof(KeyRun)));
  scratch.bytes = used;
  return scratch;
}

}  // namespace na_deploy::cpu
