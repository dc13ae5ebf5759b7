// The shape of a tile kernel: queries of a tile, keys of a box, rows in shared memory, the position of a query and the
// keys of a box that it sees.
#pragma once

#include <cstdint>

#include "device.h"
#include "tiles.h"

namespace na_deploy::cuda {

// Queries of a tile and keys of a box along each axis, for problems of kRank axes.
template <int kRank, int kT0, int kT1, int kT2, int kB0, int kB1, int kB2>
struct Shape {
  static NA_HOST_DEVICE constexpr Sizes tile() { return {{kT0, kT1, kT2}}; }
  static NA_HOST_DEVICE constexpr Sizes box() { return {{kB0, kB1, kB2}}; }
  static constexpr int kFirstAxis = kAxes - kRank;  // those before it have one position
  static constexpr int kQueries = kT0 * kT1 * kT2;
  static constexpr int kKeys = kB0 * kB1 * kB2;
};

// Coordinates of query or key `number`, at least 0, of a tile or box.
NA_DEVICE void split(int number, Sizes sizes, int32_t (&coordinate)[kAxes]) {
  auto rest = static_cast<uint32_t>(number);
  NA_UNROLL
  for (int a = kAxes - 1; a >= 0; --a) {
    const auto size = static_cast<uint32_t>(sizes[a]);
    coordinate[a] = static_cast<int32_t>(rest % size);
    rest /= size;
  }
}

// Rows of kBytes in shared memory, 16 bytes at a time, so arranged that eight rows never meet in a bank.
template <int kBytes>
struct Rows {
  static constexpr int kPieces = kBytes / 16;
  static constexpr int kShift = kPieces >= 8 ? 0 : kPieces == 4 ? 1 : 2;
  static constexpr int kMask = kPieces >= 8 ? 7 : kPieces - 1;

  NA_DEVICE static dev::Shared at(dev::Shared base, int row, int piece) {
    const auto r = static_cast<uint32_t>(row);
    return base + r * kBytes + ((static_cast<uint32_t>(piece) ^ (r >> kShift & kMask)) * 16);
  }
};

// The loads of the rows of a tile or box by kThreads threads, 16 bytes at a time: a thread loads the same piece of
// every kAtOnce-th row. A thread's row numbers differ in high bits only, so that coordinates and addresses add up and
// little is computed twice.
template <typename S, int kBytes, int kThreads>
struct RowLoads {
  using R = Rows<kBytes>;
  static constexpr int kAtOnce = kThreads / R::kPieces;
  static_assert((kAtOnce & (kAtOnce - 1)) == 0 && (kAtOnce >> R::kShift & R::kMask) == 0, "rows are swizzled alike");

  NA_DEVICE static int row() { return static_cast<int>(static_cast<uint32_t>(dev::thread()) / R::kPieces); }
  NA_DEVICE static int piece() { return static_cast<int>(static_cast<uint32_t>(dev::thread()) % R::kPieces); }

  // Calls copy(to, at, inside) for each of the thread's rows of a tile or box of `sizes` whose corner is the element
  // `first`. `to`: distance from the thread's first row in shared memory, in bytes; `at`: distance in positions from
  // the same first row of a box with its corner at element 0; `inside`: whether the row's elements are below `end`.
  // `distance`: positions between neighbouring elements.
  template <typename Copy>
  NA_DEVICE static void each(Sizes sizes, const int32_t (&first)[kAxes], const int32_t (&end)[kAxes],
                             const int32_t (&distance)[kAxes], const Copy& copy) {
    const int rows = sizes[0] * sizes[1] * sizes[2];
    int32_t own[kAxes];
    split(row(), sizes, own);
    NA_UNROLL
    for (int n = 0; n * kAtOnce < rows; ++n) {
      if (kAtOnce > rows && row() >= rows) return;
      int32_t more[kAxes];
      split(n * kAtOnce, sizes, more);
      int32_t at = 0;
      int outside = 0;
      NA_UNROLL
      for (int a = S::kFirstAxis; a < kAxes; ++a) {
        outside |= own[a] < end[a] - first[a] - more[a] ? 0 : 1;
        at += (first[a] + more[a]) * distance[a];
      }
      copy(static_cast<dev::Shared>(n * kAtOnce * kBytes), at, outside == 0);
    }
  }

  // Positions from the corner to the thread's first row.
  NA_DEVICE static int32_t offset(Sizes sizes, const int32_t (&distance)[kAxes]) {
    int32_t own[kAxes];
    split(row(), sizes, own);
    int32_t at = 0;
    NA_UNROLL
    for (int a = S::kFirstAxis; a < kAxes; ++a) at += own[a] * distance[a];
    return at;
  }
};

// The keys that a query of the tile attends to, and the index of its bias for the key with coordinates 0.
struct RowWindow {
  int32_t start[kAxes];
  int32_t end[kAxes];
  int32_t bias;
};

// Returns the window of query `row` of a tile. A query past the group's end is treated as the last one.
template <typename S>
NA_DEVICE RowWindow row_window(const CudaProblem& p, const Tile& tile, int row) {
  int32_t coordinate[kAxes];
  split(row, S::tile(), coordinate);
  RowWindow r{};
  NA_UNROLL
  for (int a = S::kFirstAxis; a < kAxes; ++a) {
    const AxisSizes& axis = p.axis[a];
    const int32_t element = smaller(tile.first[a] + coordinate[a], tile.size[a] - 1);
    const BasicWindow<int32_t> seen = axis_window(axis, tile.reached[a], element);
    r.start[a] = seen.start;
    r.end[a] = seen.end;
    r.bias += (axis.kernel_size - 1 - element) * p.bias_distance[a];
  }
  return r;
}

// Returns the flat position in the image of query `row` of a tile, or -1 past the group's end.
template <typename S>
NA_DEVICE int32_t query_position(const CudaProblem& p, const Tile& tile, int row) {
  int32_t coordinate[kAxes];
  split(row, S::tile(), coordinate);
  int32_t at = 0;
  NA_UNROLL
  for (int a = S::kFirstAxis; a < kAxes; ++a) {
    const int32_t element = tile.first[a] + coordinate[a];
    if (element >= tile.size[a]) return -1;
    at = at * p.axis[a].length + element * p.axis[a].dilation + tile.group[a];
  }
  return at;
}

// A bit for each key of a box, 32 to a word.
template <int kWords>
struct KeyBits {
  uint32_t word[kWords];
};

// A word with the bits [from, to) set.
NA_DEVICE uint32_t bit_range(int32_t from, int32_t to) { return dev::low_bits(to) & ~dev::low_bits(from); }

// Clears the bits of keys outside places [from, to) of an axis of kBox places, each of which stands for kInner keys in
// a row.
template <int kBox, int kInner, int kWords>
NA_DEVICE void keep_seen(KeyBits<kWords>& bits, int32_t from, int32_t to) {
  constexpr int kPeriod = kBox * kInner;
  if constexpr (kPeriod > 32) {
    NA_UNROLL
    for (int w = 0; w < kWords; ++w) {
      const int32_t first = w % (kPeriod / 32) * 32;
      bits.word[w] &= bit_range(from * kInner - first, to * kInner - first);
    }
  } else {
    uint32_t kept = bit_range(from * kInner, smaller(to * kInner, kPeriod));
    NA_UNROLL
    for (int width = kPeriod; width < 32; width *= 2) kept |= kept << width;
    NA_UNROLL
    for (int w = 0; w < kWords; ++w) bits.word[w] &= kept;
  }
}

// The keys of the box at `first` that a query sees.
template <typename S>
NA_DEVICE KeyBits<S::kKeys / 32> seen_keys(const RowWindow& row, const int32_t (&first)[kAxes]) {
  constexpr Sizes kBox = S::box();
  KeyBits<S::kKeys / 32> r;
  NA_UNROLL
  for (uint32_t& word : r.word) word = 0xFFFFFFFFU;
  keep_seen<kBox[2], 1>(r, row.start[2] - first[2], row.end[2] - first[2]);
  if constexpr (S::kFirstAxis < 2) keep_seen<kBox[1], kBox[2]>(r, row.start[1] - first[1], row.end[1] - first[1]);
  if constexpr (S::kFirstAxis < 1) {
    keep_seen<kBox[0], kBox[1] * kBox[2]>(r, row.start[0] - first[0], row.end[0] - first[0]);
  }
  return r;
}

}  // namespace na_deploy::cuda
