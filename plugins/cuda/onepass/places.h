// Places that a block works out before it takes images, the same for all of them: the sources of its keys and queries,
// a warp's keys in shared memory, and the keys that each query sees.
#pragma once

#include <cstdint>

#include "device.h"
#include "onepass/plan.h"
#include "problem.h"
#include "tiles.h"

namespace na_deploy::cuda::onepass {

constexpr int32_t kZeros = -1;                     // instead of a position: a row of zeros
constexpr int32_t kPadding = -2;                   // a row of padding, behind the map
constexpr uint32_t kHigh = 0x88040200U;            // the bits above the fields of KeyPlace::at
constexpr uint32_t kNever = 0xFFU << at_shift(0);  // past every span of the first axis

// Returns the first key of the tile's hull.
struct Corner {
  int32_t at[kAxes];
};

NA_DEVICE Corner corner_of(const Plan& plan, const Tile& tile) {
  Corner r;
  NA_UNROLL
  for (int a = 0; a < kAxes; ++a) {
    r.at[a] = larger(smaller(tile.range[a].lowest_start, tile.reached[a] - plan.hull[a]), 0);
  }
  return r;
}

// Returns the source of row `row` of the keys in shared memory: a position, or kZeros, or kPadding.
NA_DEVICE int32_t key_position(const CudaProblem& p, const Plan& plan, const Tile& tile, const Corner& corner,
                               int32_t row) {
  int32_t at[kAxes];
  int32_t image = row;
  at[0] = divide(image, plan.by_image_pitch);
  at[1] = divide(at[0], plan.by_pitch[0]);
  at[2] = divide(at[1], plan.by_pitch[1]);
  bool exists = image < plan.images;
  bool behind = false;
  int32_t position = image * p.positions;
  NA_UNROLL
  for (int a = 0; a < kAxes; ++a) {
    const int32_t element = corner.at[a] + at[a];
    exists = exists && at[a] < plan.hull[a] && element < tile.reached[a];
    behind = behind || element >= tile.size[a];
    position += (element * p.axis[a].dilation + tile.group[a]) * p.distance[a];
  }
  if (!exists) return kZeros;
  return behind ? kPadding : position;
}

// Returns key `number` of every warp's hull.
NA_DEVICE KeyPlace key_place(const Plan& plan, int32_t number) {
  const int32_t past = number - plan.keys * plan.image_span;  // then rows of other keys stand for it, unseen
  int32_t image = past < 0 ? number : plan.keys * plan.image_span - 1;
  KeyPlace r{0, 0, past < 0 ? 0 : past + 1, 0};
  NA_UNROLL
  for (int a = kAxes - 1; a >= 0; --a) {
    const int32_t at = divide(image, plan.by_span[a]);
    r.at |= static_cast<uint32_t>(at) << at_shift(a);
    r.bias += at * plan.bias_pitch[a];
    r.slot += at * plan.pitch[a];
  }
  r.at |= static_cast<uint32_t>(image) << kImageShift;
  r.slot += image * plan.image_pitch;
  if (past >= 0) r.at = kNever;
  return r;
}

// Returns query `row` of a warp: its element on each axis from the tile's first, and its image.
struct Query {
  int32_t at[kAxes];
  int32_t image;
  bool exists;
};

NA_DEVICE Query query_at(const Plan& plan, const Tile& tile, int32_t warp, int32_t row) {
  Query r;
  int32_t number = warp;
  if (plan.is_flat != 0) {
    number = warp * kRowQueries + row;
    NA_UNROLL
    for (int a = kAxes - 1; a >= 0; --a) r.at[a] = divide(number, plan.by_tile[a]);
  } else {
    int32_t own = row;
    NA_UNROLL
    for (int a = kAxes - 1; a >= 0; --a) {
      r.at[a] = divide(own, plan.by_part[a]);
      r.at[a] += divide(number, plan.by_parts[a]) * plan.part[a];
    }
  }
  r.image = number;
  r.exists = number < plan.images;
  NA_UNROLL
  for (int a = 0; a < kAxes; ++a) r.exists = r.exists && tile.first[a] + r.at[a] < tile.size[a];
  return r;
}

// The keys that a warp sees: its hull's first row in shared memory, and the number of chunks.
struct WarpHull {
  int32_t row;
  int32_t chunks;
};

// Returns the smallest of the numbers below 2^24 that 16 lanes hold.
NA_DEVICE int32_t smallest_of_16(int32_t number) {
  auto own = static_cast<float>(-number);
  NA_UNROLL
  for (int mask = 1; mask < kRowQueries; mask *= 2) own = dev::max(own, dev::shuffle_xor(own, mask));
  return -static_cast<int32_t>(own);
}

// Works out the warp's hull, and the keys that the query l % 16 of lane l sees.
NA_DEVICE WarpHull find_rows(const CudaProblem& p, const Plan& plan, const Tile& tile, const Corner& corner,
                             RowSeen* rows) {
  constexpr int32_t kFar = 1 << 20;
  const int32_t row = dev::thread() % kRowQueries;
  const Query query = query_at(plan, tile, dev::thread() / 32, row);
  RowSeen r{0, 0, 0, query.image * p.positions};
  WarpHull hull{0, 0};
  NA_UNROLL
  for (int a = 0; a < kAxes; ++a) {
    const AxisSizes& axis = p.axis[a];
    const int32_t element = smaller(tile.first[a] + query.at[a], tile.size[a] - 1);
    const BasicWindow<int32_t> window = axis_window(axis, tile.reached[a], element);
    const int32_t start = window.start - corner.at[a];
    const int32_t first = smaller(smallest_of_16(query.exists ? start : kFar), plan.hull[a] - plan.span[a]);
    hull.row += first * plan.pitch[a];
    const int shift = at_shift(a);
    r.first |= static_cast<uint32_t>(start - first) << shift;
    r.last |= static_cast<uint32_t>(start - first + window.end - window.start - 1) << shift;
    r.bias += (corner.at[a] + first - element + axis.kernel_size - 1) * plan.bias_pitch[a];
    r.position += (element * axis.dilation + tile.group[a]) * p.distance[a];
  }
  const int32_t image = smaller(smallest_of_16(query.exists ? query.image : kFar), plan.images - 1);
  const int32_t last = -smallest_of_16(query.exists ? -query.image : kFar);
  hull.row += image * plan.image_pitch;
  hull.chunks = ((larger(last - image, 0) + 1) * plan.keys + kChunk - 1) / kChunk;
  r.first |= static_cast<uint32_t>(query.image - image) << kImageShift;
  r.last |= static_cast<uint32_t>(query.image - image) << kImageShift;
  if (!query.exists) r = {0, 0, 0, -1};  // sees the hull's first key, so that its result is a number
  if (dev::thread() % 32 < kRowQueries) rows[dev::thread() / 32 * kRowQueries + row] = r;
  dev::sync_warp();
  return hull;
}

NA_DEVICE bool sees(const RowSeen& row, const KeyPlace& key) {
  return (((key.at | kHigh) - row.first) & ((row.last | kHigh) - key.at) & kHigh) == kHigh;
}

}  // namespace na_deploy::cuda::onepass
