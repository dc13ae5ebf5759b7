// One task's tile: the queries in its lanes, the keys that it reads, and the keys that each query sees. Free of SIMD.
#pragma once

#include <cstdint>

#include "plan.h"

namespace na_deploy::cpu {

// The tile along one axis.
struct AxisTile {
  int64_t place = -1;  // number among the axis's dilation * tiles; -1: none yet
  int64_t group = 0;
  int64_t origin = 0;  // element of the first query
  int64_t count = 0;   // queries; 0 where the tile lies past the end of its dilation group
  int64_t first = 0;   // the keys that the queries see
  int64_t last = 0;
  bool sees_all = false;                       // every query sees every key
  uint64_t used = 0;                           // lanes whose query lies inside, as bits
  int64_t quad_first[kMaxLanes / kQuad] = {};  // the keys that four lanes see; empty without queries
  int64_t quad_last[kMaxLanes / kQuad] = {};
};

// Elements count positions of a dilation group.
struct Tile {
  int64_t batch = 0;
  int64_t head = 0;
  AxisTile axis[kAxes];
  uint64_t used = 0;      // lanes that hold a query, as bits; others lie past the end of the group
  bool sees_all = false;  // every query sees every key of the box
  int64_t query_at = 0;   // offset of the tile's first query; Plan::lane_query is counted from it
  int64_t output_at = 0;
};

// Finds the task's tile and writes `visible` (see Scratch). Returns false where it lies past the end of its dilation
// group.
bool place_tile(const Plan& plan, const na_params& params, int64_t task, uint64_t* const (&visible)[kAxes], Tile& tile);

// Finds the task's dilation group where every task is a whole one (Plan::whole_group).
void place_group(const Plan& plan, const na_params& params, int64_t task, Tile& tile);

// Returns the offset of the row of the given elements in a tensor.
inline int64_t offset_of(const Plan& plan, const Strides& strides, const Tile& tile, int64_t head,
                         const int64_t (&element)[kAxes]) {
  int64_t at = strides.offset + tile.batch * strides.batch + head * strides.head;
  for (int a = 0; a < kAxes; ++a) at += (element[a] * plan.axis[a].dilation + tile.axis[a].group) * strides.axis[a];
  return at;
}

}  // namespace na_deploy::cpu
