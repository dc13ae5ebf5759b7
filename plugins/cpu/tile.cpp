#include "tile.h"

#include <algorithm>

#include "../core/window.h"

namespace na_deploy::cpu {
namespace {

// Places the tile along axis `a` and writes the lanes that see each of its keys.
void place_axis(const Plan& plan, int a, int64_t place, AxisTile& tile, uint64_t* visible) {
  const AxisPlan& axis = plan.axis[a];
  tile.place = place;
  tile.group = place / axis.tiles;
  tile.origin = (place - tile.group * axis.tiles) * axis.tile;
  const int64_t size = group_length(axis.length, axis.dilation, tile.group);
  tile.count = std::min(axis.tile, size - tile.origin);
  if (tile.count <= 0) return;

  Window windows[kMaxLanes];
  tile.first = size;
  tile.last = 0;
  for (int64_t i = 0; i < tile.count; ++i) {
    windows[i] = group_window(tile.origin + i, size, axis.kernel_size, axis.stride, axis.is_causal);
    tile.first = std::min(tile.first, windows[i].start);
    tile.last = std::max(tile.last, windows[i].end);
  }
  tile.sees_all = true;
  tile.used = 0;
  for (int64_t i = 0; i < tile.count; ++i) {
    tile.sees_all = tile.sees_all && windows[i].start == tile.first && windows[i].end == tile.last;
    tile.used |= plan.lanes_at[a][i];
  }
  std::fill_n(visible, tile.last - tile.first, uint64_t{0});
  for (int64_t i = 0; i < tile.count; ++i) {
    const int64_t end = windows[i].end - tile.first;
    for (int64_t key = windows[i].start - tile.first; key < end; ++key) visible[key] |= plan.lanes_at[a][i];
  }
  for (int64_t quad = 0; quad * kQuad < plan.used_lanes; ++quad) {
    tile.quad_first[quad] = tile.last;
    tile.quad_last[quad] = tile.first;
    for (int64_t lane = quad * kQuad; lane < std::min((quad + 1) * kQuad, plan.used_lanes); ++lane) {
      const int64_t at = plan.place[lane][a];
      if (at >= tile.count) continue;
      tile.quad_first[quad] = std::min(tile.quad_first[quad], windows[at].start);
      tile.quad_last[quad] = std::max(tile.quad_last[quad], windows[at].end);
    }
  }
}

// Neighbouring heads lie side by side in memory: taken one after another, they are read in long stretches. Where each
// head's bias must be prepared first, one head is finished before the next begins.
bool takes_heads_first(const na_params& params) {
  return params.rel_pos_bias == nullptr || params.prepared_bias != nullptr;
}

}  // namespace

bool place_tile(const Plan& plan, const na_params& params, int64_t task, uint64_t* const (&visible)[kAxes],
                Tile& tile) {
  tile.used = ~uint64_t{0} >> (64 - plan.used_lanes);
  tile.sees_all = true;
  const bool heads_first = takes_heads_first(params);
  if (heads_first) {
    tile.head = task % params.heads;
    task /= params.heads;
  }
  int64_t origin[kAxes];
  for (int a = kAxes - 1; a >= 0; --a) {
    AxisTile& own = tile.axis[a];
    const int64_t places = plan.axis[a].dilation * plan.axis[a].tiles;
    const int64_t above = task / places;
    const int64_t place = task - above * places;
    task = above;
    if (own.place != place) place_axis(plan, a, place, own, visible[a]);
    if (own.count <= 0) return false;
    origin[a] = own.origin;
    tile.used &= own.used;
    tile.sees_all = tile.sees_all && own.sees_all;
  }
  if (!heads_first) {
    tile.head = task % params.heads;
    task /= params.heads;
  }
  tile.batch = task;
  tile.query_at = offset_of(plan, plan.query, tile, tile.head, origin);
  tile.output_at = offset_of(plan, plan.output, tile, tile.head, origin);
  return true;
}

void place_group(const Plan& plan, const na_params& params, int64_t task, Tile& tile) {
  const bool heads_first = takes_heads_first(params);
  if (heads_first) {
    tile.head = task % params.heads;
    task /= params.heads;
  }
  for (int a = kAxes - 1; a >= 0; --a) {
    tile.axis[a].group = task % plan.axis[a].dilation;
    task /= plan.axis[a].dilation;
  }
  if (!heads_first) {
    tile.head = task % params.heads;
    task /= params.heads;
  }
  tile.batch = task;
  tile.used = ~uint64_t{0} >> (64 - plan.used_lanes);
  tile.sees_all = true;
  constexpr int64_t kFirst[kAxes] = {};
  tile.query_at = offset_of(plan, plan.query, tile, tile.head, kFirst);
  tile.output_at = offset_of(plan, plan.output, tile, tile.head, kFirst);
}

}  // namespace na_deploy::cpu
