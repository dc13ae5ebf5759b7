// Maps that are smaller than their windows, which only problems with padding may have: windows are then laid over a map
// that is as long as they reach.
#pragma once

#include <cstdint>

#include "na_params.h"
#include "window.h"

namespace na_deploy {

// Positions of an axis that windows are laid over. The axis itself has the first `length` of them.
NA_HOST_DEVICE constexpr int64_t padded_length(int64_t length, int64_t kernel_size, int64_t dilation) {
  return larger(length, kernel_size * dilation);
}

// Whether windows of checked parameters reach behind the map.
inline bool reaches_behind(const na_params& p) {
  for (int axis = 0; axis < p.rank; ++axis) {
    if (p.kernel_size[axis] * p.dilation[axis] > p.length[axis]) return true;
  }
  return false;
}

}  // namespace na_deploy
