// The ways to compute a problem on a GPU, in one table: the plain kernel, and tiles of several shapes.
#pragma once

#include <cstdint>

#include "tiles.h"

namespace na_deploy {

// One axis: 64 or 128 queries. Two: 8x8, 16x8 or 4x16. Three: 4x4x4, 2x4x8 or 4x4x8. Boxes have 64 keys.
#define NA_TILE_SHAPES(use)                                                                  \
  use(2, 1, 1, 1, 64, 1, 1, 64) use(3, 1, 1, 1, 128, 1, 1, 64) use(4, 2, 1, 8, 8, 1, 8, 8)   \
      use(5, 2, 1, 16, 8, 1, 8, 8) use(6, 2, 1, 4, 16, 1, 4, 16) use(7, 3, 4, 4, 4, 4, 4, 4) \
          use(8, 3, 2, 4, 8, 2, 4, 8) use(9, 3, 4, 4, 8, 4, 4, 4)

constexpr int32_t kPlainTactic = 1;

// Head dims that tile kernels exist for; a smaller one that is a multiple of 8 takes the next.
constexpr int kTileDims[] = {16, 32, 64, 128};

constexpr int tile_dim(int64_t head_dim, int64_t value_dim) {
  const int64_t widest = head_dim > value_dim ? head_dim : value_dim;
  if (head_dim % 8 != 0 || value_dim % 8 != 0) return 0;
  for (const int dim : kTileDims) {
    if (widest <= dim) return dim;
  }
  return 0;
}

}  // namespace na_deploy
