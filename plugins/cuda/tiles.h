// How blocks of threads cut a problem: tiles of queries of one dilation group, boxes of keys, and which boxes a tile
// needs. Host and device share it; the host side is tested against the Python statement of the window.
#pragma once

#include <cstdint>

#include "problem.h"
#include "window.h"

namespace na_deploy {

// What the queries [first, first + tile) of a dilation group attend to on one axis. Windows move forward with queries.
struct AxisRange {
  int32_t lowest_start;
  int32_t highest_start;
  int32_t lowest_end;
  int32_t highest_end;
};

NA_HOST_DEVICE AxisRange axis_range(const AxisSizes& axis, int32_t size, int32_t first, int32_t tile) {
  const auto last = static_cast<int32_t>(smaller(first + tile - 1, size - 1));
  const Window a = group_window(first, size, axis.kernel_size, axis.stride, axis.is_causal != 0);
  const Window b = group_window(last, size, axis.kernel_size, axis.stride, axis.is_causal != 0);
  return {static_cast<int32_t>(a.start), static_cast<int32_t>(b.start), static_cast<int32_t>(a.end),
          static_cast<int32_t>(b.end)};
}

// Boxes of `box` keys that cover the range, the first at its lowest start.
NA_HOST_DEVICE int32_t boxes_of(const AxisRange& range, int32_t box) {
  return (range.highest_end - range.lowest_start + box - 1) / box;
}

// Whether no query of the tile sees a key of [first, first + box), or every query every key.
NA_HOST_DEVICE bool box_is_outside(const AxisRange& range, int32_t first, int32_t box) {
  return first >= range.highest_end || first + box <= range.lowest_start;
}
NA_HOST_DEVICE bool box_is_inside(const AxisRange& range, int32_t first, int32_t box) {
  return first >= range.highest_start && first + box <= range.lowest_end;
}

// One tile: image, head, dilation group and first query on every axis.
struct Tile {
  int64_t image;
  int32_t head;
  int32_t group[kAxes];
  int32_t size[kAxes];  // of the group
  int32_t first[kAxes];
  AxisRange range[kAxes];
  bool is_empty;  // the group is shorter than others, and this tile past its end
};

NA_HOST_DEVICE int64_t tiles_of(const CudaProblem& p, Sizes tile) {
  int64_t tiles = p.batch * p.heads;
  for (int a = 0; a < kAxes; ++a) {
    tiles *= int64_t{p.axis[a].dilation} * ((p.axis[a].longest + tile[a] - 1) / tile[a]);
  }
  return tiles;
}

// Tile `number`; heads vary fastest, since their channels lie side by side.
NA_HOST_DEVICE Tile tile_at(const CudaProblem& p, Sizes tile, int64_t number) {
  Tile r;
  r.head = static_cast<int32_t>(number % p.heads);
  number /= p.heads;
  r.is_empty = false;
  for (int a = kAxes - 1; a >= 0; --a) {
    const int32_t count = (p.axis[a].longest + tile[a] - 1) / tile[a];
    r.first[a] = static_cast<int32_t>(number % count) * tile[a];
    number /= count;
  }
  for (int a = kAxes - 1; a >= 0; --a) {
    const AxisSizes& axis = p.axis[a];
    r.group[a] = static_cast<int32_t>(number % axis.dilation);
    number /= axis.dilation;
    r.size[a] = static_cast<int32_t>(group_length(axis.length, axis.dilation, r.group[a]));
    r.is_empty = r.is_empty || r.first[a] >= r.size[a];
    if (!r.is_empty) r.range[a] = axis_range(axis, r.size[a], r.first[a], tile[a]);
  }
  r.image = number;
  return r;
}

// A step of a tile's loop over keys.
struct KeyBox {
  int32_t number;  // of the step
  int32_t first[kAxes];
  bool is_additional;  // first[0] is then the first additional key
  bool is_inside;      // no mask is needed
};

// All steps of a tile: its boxes, then additional keys.
struct KeyBoxes {
  int32_t count[kAxes];
  int32_t boxes;
  int32_t steps;
};

NA_HOST_DEVICE KeyBoxes key_boxes(const Tile& tile, Sizes box, int32_t additional) {
  KeyBoxes r;
  r.boxes = 1;
  for (int a = 0; a < kAxes; ++a) {
    r.count[a] = boxes_of(tile.range[a], box[a]);
    r.boxes *= r.count[a];
  }
  const int keys = box[0] * box[1] * box[2];
  r.steps = r.boxes + (additional + keys - 1) / keys;
  return r;
}

// Step `number`.
NA_HOST_DEVICE KeyBox box_at(const Tile& tile, const KeyBoxes& all, Sizes box, int32_t additional, int32_t number) {
  KeyBox r;
  r.number = number;
  r.is_additional = number >= all.boxes;
  if (r.is_additional) {
    const int keys = box[0] * box[1] * box[2];
    r.first[0] = (number - all.boxes) * keys;
    r.is_inside = r.first[0] + keys <= additional;
    return r;
  }
  r.is_inside = true;
  for (int a = kAxes - 1; a >= 0; --a) {
    r.first[a] = tile.range[a].lowest_start + number % all.count[a] * box[a];
    number /= all.count[a];
    r.is_inside = r.is_inside && box_is_inside(tile.range[a], r.first[a], box[a]);
  }
  return r;
}

// The first step from `number` on that some query needs; all.steps where none is left.
NA_HOST_DEVICE int32_t next_step(const Tile& tile, const KeyBoxes& all, Sizes box, int32_t number) {
  for (; number < all.boxes; ++number) {
    bool outside = false;
    int32_t rest = number;
    for (int a = kAxes - 1; a >= 0; --a) {
      const int32_t first = tile.range[a].lowest_start + rest % all.count[a] * box[a];
      rest /= all.count[a];
      outside = outside || box_is_outside(tile.range[a], first, box[a]);
    }
    if (!outside) break;
  }
  return number;
}

}  // namespace na_deploy
