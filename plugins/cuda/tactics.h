// The ways to compute a problem on a GPU, in one table: the plain kernel, and tiles of several shapes.
#pragma once

#include <cstdint>

#include "tiles.h"

namespace na_deploy::cuda {

// Tactic, axes, queries of a tile, keys of a box. One axis: 64 or 128 queries. Two: 8x8, 16x8 or 4x16. Three: 4x4x4,
// 2x4x8 or 4x4x8. Boxes of 64 keys.
#define NA_TILE_SHAPES(use)                                                                  \
  use(2, 1, 1, 1, 64, 1, 1, 64) use(3, 1, 1, 1, 128, 1, 1, 64) use(4, 2, 1, 8, 8, 1, 8, 8)   \
      use(5, 2, 1, 16, 8, 1, 8, 8) use(6, 2, 1, 4, 16, 1, 4, 16) use(7, 3, 4, 4, 4, 4, 4, 4) \
          use(8, 3, 2, 4, 8, 2, 4, 8) use(9, 3, 4, 4, 8, 4, 4, 4)

// Boxes of 128 keys, in half as many steps: for narrow heads of 16 bits, whose sums leave enough registers for the
// scores.
#define NA_WIDE_SHAPES(use) use(10, 2, 1, 8, 8, 1, 16, 8) use(11, 2, 1, 16, 8, 1, 16, 8) use(12, 3, 4, 4, 4, 8, 4, 4)
constexpr int kNarrowBytes = 64;  // bytes of a narrow head
constexpr bool has_wide(int dim, size_t width) { return width == 2 && dim * width <= kNarrowBytes; }

// Shapes for Hopper: 128 queries and boxes of 128 keys. One axis: 128. Two: 8x16 or 16x8. Three: 2x8x8 or 4x4x8.
#define NA_HOPPER_SHAPES(use) \
  use(20, 1, 1, 1, 128) use(21, 2, 1, 8, 16) use(22, 2, 1, 16, 8) use(23, 3, 2, 8, 8) use(24, 3, 4, 4, 8)
#define NA_HOPPER_UNITS(use) use(dev::Half, 64) use(dev::Half, 128) use(dev::Bfloat, 64) use(dev::Bfloat, 128)

// Tactics of the one-pass kernel: at most 4, 8 or 16 warps in a block. Shapes are chosen for each problem
// (onepass/plan.cpp).
constexpr int32_t kOnePassTactics[] = {30, 31, 32};
#define NA_ONEPASS_UNITS(use)                                                                        \
  use(dev::Half, 16) use(dev::Half, 32) use(dev::Half, 64) use(dev::Bfloat, 16) use(dev::Bfloat, 32) \
      use(dev::Bfloat, 64)

constexpr int32_t kNoTactic = 0;
constexpr int32_t kPlainTactic = 1;
constexpr bool is_hopper(int32_t tactic) { return tactic >= 20 && tactic < 30; }
constexpr bool is_onepass(int32_t tactic) { return tactic >= 30; }

// Returns the tactic, or for 0 the default one, if it can compute the problem on the present device; else kNoTactic.
int32_t known_tactic(const na_params& p, int32_t tactic);

// Returns whether the present device, and the library as compiled, can run the kernels for Hopper.
bool device_is_hopper();

// Channel counts of tile kernels. Heads with fewer channels, in whole pieces of 16 bytes, take the next count. 128
// channels of float32 would fill the shared memory of most devices.
constexpr int kTileDims[] = {16, 32, 64, 128};

#define NA_TILE_UNITS(use)                                                                          \
  use(dev::Half, 16) use(dev::Half, 32) use(dev::Half, 64) use(dev::Half, 128) use(dev::Bfloat, 16) \
      use(dev::Bfloat, 32) use(dev::Bfloat, 64) use(dev::Bfloat, 128) use(float, 16) use(float, 32) use(float, 64)

// Returns the channels of the tile kernel for numbers of `width` bytes, 0 if there is none.
constexpr int tile_dim(int64_t head_dim, int64_t value_dim, int width) {
  const int64_t widest = head_dim > value_dim ? head_dim : value_dim;
  if (head_dim * width % 16 != 0 || value_dim * width % 16 != 0) return 0;
  for (const int dim : kTileDims) {
    if (widest <= dim) return dim * width <= 256 ? dim : 0;
  }
  return 0;
}

}  // namespace na_deploy::cuda
