// The cut of a problem into tiles of queries of one dilation group, one for each block of threads, and boxes of keys
// that a tile needs. Host and device share it; the host side is tested against the Python statement of the window.
#pragma once

#include <cstdint>

#include "problem.h"
#include "window.h"

namespace na_deploy::cuda {

// The keys that the queries [first, first + tile) of a dilation group attend to on one axis. Windows move forward with
// queries.
struct AxisRange {
  int32_t lowest_start;
  int32_t highest_start;
  int32_t lowest_end;
  int32_t highest_end;
};

NA_HOST_DEVICE AxisRange axis_range(const AxisSizes& axis, int32_t size, int32_t first, int32_t tile) {
  const BasicWindow<int32_t> a = axis_window(axis, size, first);
  const BasicWindow<int32_t> b = axis_window(axis, size, smaller(first + tile - 1, size - 1));
  return {a.start, b.start, a.end, b.end};
}

// Returns whether every query of the tile sees every key of [first, first + box).
NA_HOST_DEVICE bool box_is_inside(const AxisRange& range, int32_t first, int32_t box) {
  return (first >= range.highest_start) & (first + box <= range.lowest_end);
}

// The cover of a problem by tiles of one shape: the numbers with which a block finds its tile without dividing.
struct TileGrid {
  Divisor heads;
  Divisor dilation[kAxes];
  Divisor tiles[kAxes];  // tiles of the longest dilation group
  int64_t blocks = 0;
};

inline TileGrid make_tile_grid(const CudaProblem& p, Sizes tile) {
  TileGrid r;
  r.heads = make_divisor(p.heads);
  r.blocks = p.batch * p.heads;
  for (int a = 0; a < kAxes; ++a) {
    const int32_t tiles = (p.axis[a].longest + tile[a] - 1) / tile[a];
    r.dilation[a] = make_divisor(p.axis[a].dilation);
    r.tiles[a] = make_divisor(tiles);
    r.blocks *= int64_t{p.axis[a].dilation} * tiles;
  }
  return r;
}

// One tile: image, head, dilation group and first query on every axis.
struct Tile {
  int64_t image;
  int32_t head;
  int32_t group[kAxes];
  int32_t size[kAxes];     // positions of the group
  int32_t reached[kAxes];  // the same, padded where windows reach past the map
  int32_t first[kAxes];
  AxisRange range[kAxes];
  bool is_empty;  // the group is shorter than others, and this tile lies past its end
};

// Returns tile `number`; heads vary fastest, because their channels lie side by side.
NA_HOST_DEVICE Tile tile_at(const CudaProblem& p, const TileGrid& grid, Sizes tile, int32_t number) {
  Tile r;
  r.head = divide(number, grid.heads);
  r.is_empty = false;
  for (int a = kAxes - 1; a >= 0; --a) r.first[a] = divide(number, grid.tiles[a]) * tile[a];
  for (int a = kAxes - 1; a >= 0; --a) {
    r.group[a] = divide(number, grid.dilation[a]);
    r.size[a] = group_size(p.axis[a], r.group[a]);
    r.reached[a] = reached_size(p.axis[a], r.group[a]);
    r.is_empty = r.is_empty || r.first[a] >= r.size[a];
    if (!r.is_empty) r.range[a] = axis_range(p.axis[a], r.reached[a], r.first[a], tile[a]);
  }
  r.image = number;
  return r;
}

// A step of a tile's loop over keys: a box of the map, or as many of the additional keys.
struct KeyStep {
  int32_t first[kAxes];
  int32_t additional = -1;  // the first additional key; -1 in a box of the map

  NA_HOST_DEVICE bool is_additional() const { return additional >= 0; }
};

NA_HOST_DEVICE KeyStep first_step(const Tile& tile) {
  KeyStep r;
  for (int a = 0; a < kAxes; ++a) r.first[a] = tile.range[a].lowest_start;
  return r;
}

// Moves to the next step: boxes cover what the tile's queries see, then come the additional keys. Axes before
// `first_axis` have one position.
NA_HOST_DEVICE void advance(const Tile& tile, Sizes box, int first_axis, KeyStep& step) {
  if (step.is_additional()) {
    step.additional += box[0] * box[1] * box[2];
    return;
  }
  for (int a = kAxes - 1; a >= first_axis; --a) {
    step.first[a] += box[a];
    if (step.first[a] < tile.range[a].highest_end) return;
    step.first[a] = tile.range[a].lowest_start;
  }
  step.additional = 0;
}

NA_HOST_DEVICE bool is_past(const KeyStep& step, int32_t additional) { return step.additional >= additional; }

// Returns whether all queries of the tile see all keys of the step, so that no mask is needed.
NA_HOST_DEVICE bool is_inside(const Tile& tile, Sizes box, int first_axis, const KeyStep& step, int32_t additional) {
  if (step.is_additional()) return step.additional + box[0] * box[1] * box[2] <= additional;
  int outside = 0;
  for (int a = first_axis; a < kAxes; ++a) outside |= box_is_inside(tile.range[a], step.first[a], box[a]) ? 0 : 1;
  return outside == 0;
}

}  // namespace na_deploy::cuda
