// The shape of a tile kernel: queries of a tile, keys of a box, rows in shared memory, and which keys of a box a query
// sees.
#pragma once

#include <cstdint>

#include "device.h"
#include "tiles.h"

namespace na_deploy {

constexpr int kBoxKeys = 64;

// Queries of a tile and keys of a box along each axis, for problems of kRank axes.
template <int kRank, int kT0, int kT1, int kT2, int kB0, int kB1, int kB2>
struct Shape {
  static NA_HOST_DEVICE constexpr Sizes tile() { return {{kT0, kT1, kT2}}; }
  static NA_HOST_DEVICE constexpr Sizes box() { return {{kB0, kB1, kB2}}; }
  static constexpr int kFirstAxis = kAxes - kRank;  // those before it have one position
  static constexpr int kQueries = kT0 * kT1 * kT2;
  static constexpr int kThreads = 2 * kQueries;
  static_assert(kB0 * kB1 * kB2 == kBoxKeys, "a box has 64 keys");
  static_assert(kQueries % 16 == 0 && kQueries <= 2 * kBoxKeys, "a warp takes 16 queries; they pass through a stage");
};

// Coordinates of query or key `number` of a tile or box.
NA_DEVICE void split(int number, Sizes sizes, int32_t (&coordinate)[kAxes]) {
  NA_UNROLL
  for (int a = kAxes - 1; a >= 0; --a) {
    coordinate[a] = number % sizes[a];
    number /= sizes[a];
  }
}

// Rows of kBytes in shared memory, 16 bytes at a time, so arranged that eight rows never meet in a bank.
template <int kBytes>
struct Rows {
  static constexpr int kPieces = kBytes / 16;
  static constexpr int kShift = kPieces >= 8 ? 0 : kPieces == 4 ? 1 : 2;
  static constexpr int kMask = kPieces >= 8 ? 7 : kPieces - 1;

  NA_DEVICE static dev::Shared at(dev::Shared base, int row, int piece) {
    return base + static_cast<dev::Shared>(row * kBytes + ((piece ^ ((row >> kShift) & kMask)) * 16));
  }
};

// What a query of the tile attends to, and where its biases begin: the index for the key with coordinates 0.
struct RowWindow {
  int32_t start[kAxes];
  int32_t end[kAxes];
  int32_t bias;
};

// A bit for each key of a box.
struct KeyBits {
  uint32_t word[2];
};

// The numbers [from, to) of kBits bits, as bits.
NA_DEVICE uint32_t bit_range(int32_t from, int32_t to) { return dev::low_bits(to) & ~dev::low_bits(from); }

// Bits of one axis: places [from, to) of kBox, each standing for kInner keys in a row, the whole again and again.
template <int kBox, int kInner>
NA_DEVICE KeyBits axis_bits(int32_t from, int32_t to) {
  constexpr int kPeriod = kBox * kInner;
  if constexpr (kPeriod > 32) {
    return {{bit_range(from * kInner, to * kInner), bit_range(from * kInner - 32, to * kInner - 32)}};
  } else {
    uint32_t bits = bit_range(from * kInner, smaller(to * kInner, kPeriod));
    NA_UNROLL
    for (int width = kPeriod; width < 32; width *= 2) bits |= bits << width;
    return {{bits, bits}};
  }
}

// The keys of the box at `first` that a query sees.
template <typename S>
NA_DEVICE KeyBits seen_keys(const RowWindow& row, const int32_t (&first)[kAxes]) {
  constexpr Sizes kBox = S::box();
  const KeyBits x = axis_bits<kBox[2], 1>(row.start[2] - first[2], row.end[2] - first[2]);
  if constexpr (S::kFirstAxis == 2) return x;
  const KeyBits y = axis_bits<kBox[1], kBox[2]>(row.start[1] - first[1], row.end[1] - first[1]);
  KeyBits seen{{x.word[0] & y.word[0], x.word[1] & y.word[1]}};
  if constexpr (S::kFirstAxis == 1) return seen;
  const KeyBits z = axis_bits<kBox[0], kBox[1] * kBox[2]>(row.start[0] - first[0], row.end[0] - first[0]);
  return {{seen.word[0] & z.word[0], seen.word[1] & z.word[1]}};
}

}  // namespace na_deploy
