// Maps smaller than their windows, allowed only with padding: windows are then laid over a map padded to their reach.
#pragma once

#include <cstdint>

#include "na_params.h"
#include "window.h"

namespace na_deploy {

// Returns the length of an axis padded to the reach of its windows. The axis itself is its first `length` positions.
NA_HOST_DEVICE constexpr int64_t padded_length(int64_t length, int64_t kernel_size, int64_t dilation) {
  return larger(length, kernel_size * dilation);
}

// Returns whether windows of checked parameters reach past the end of the map.
inline bool reaches_behind(const na_params& p) {
  for (int axis = 0; axis < p.rank; ++axis) {
    if (p.kernel_size[axis] * p.dilation[axis] > p.length[axis]) return true;
  }
  return false;
}

}  // namespace na_deploy
