// The neighborhood window of one axis, for host and device. The same arithmetic as attention/windows.py, which states
// where the formulas come from; a test holds the two together.
#pragma once

#include <cstdint>

#ifdef __CUDACC__
#define NA_HOST_DEVICE __host__ __device__ __forceinline__
#else
#define NA_HOST_DEVICE inline
#endif

namespace na_deploy {

// Elements [start, end) of a dilation group.
struct Window {
  int64_t start;
  int64_t end;
};

NA_HOST_DEVICE constexpr int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }
NA_HOST_DEVICE constexpr int64_t larger(int64_t a, int64_t b) { return a < b ? b : a; }

// How many positions of an axis the dilation group `group` holds: ceil((length - group) / dilation).
NA_HOST_DEVICE constexpr int64_t group_length(int64_t length, int64_t dilation, int64_t group) {
  return (length - group + dilation - 1) / dilation;
}

// The window of `element` of a dilation group of `size` elements. An element past the end has the last one's window.
NA_HOST_DEVICE constexpr Window group_window(int64_t element, int64_t size, int64_t kernel_size, int64_t stride,
                                             bool is_causal) {
  element = smaller(element, size - 1);
  const int64_t first = element / stride * stride;
  if (is_causal) {
    const int64_t leader = smaller(first + stride - 1, size - 1);
    return {larger(leader - kernel_size + 1, 0), element + 1};
  }
  const int64_t left = kernel_size / 2;
  const int64_t right = left + kernel_size % 2 - 1;
  const int64_t leader = smaller(first + stride / 2, size - 1);
  const int64_t overhang = leader + right >= size ? size - right - leader - 1 : 0;
  const int64_t start = larger(leader - left, 0) + overhang;
  return {start, start + kernel_size};
}

}  // namespace na_deploy
