// The neighborhood window of one axis, for host and device. The arithmetic is that of attention/windows.py, which
// states the formulas' source; a test compares the two.
#pragma once

#include <cstdint>

#ifdef __CUDACC__
#define NA_HOST_DEVICE __host__ __device__ __forceinline__
#else
#define NA_HOST_DEVICE inline
#endif

namespace na_deploy {

// Elements [start, end) of a dilation group, counted in 64 or 32 bits.
template <typename Int>
struct BasicWindow {
  Int start;
  Int end;
};
using Window = BasicWindow<int64_t>;

template <typename Int>
NA_HOST_DEVICE constexpr Int smaller(Int a, Int b) {
  return a < b ? a : b;
}
template <typename Int>
NA_HOST_DEVICE constexpr Int larger(Int a, Int b) {
  return a < b ? b : a;
}

// Returns the number of positions of an axis in the dilation group `group`: ceil((length - group) / dilation).
NA_HOST_DEVICE constexpr int64_t group_length(int64_t length, int64_t dilation, int64_t group) {
  return (length - group + dilation - 1) / dilation;
}

// The window of `element` of a dilation group of `size` elements, where `first` is the first element that shares its
// window: element / stride * stride.
template <typename Int>
NA_HOST_DEVICE constexpr BasicWindow<Int> shared_window(Int element, Int first, Int size, Int kernel_size, Int stride,
                                                        bool is_causal) {
  if (is_causal) {
    const Int leader = smaller<Int>(first + stride - 1, size - 1);
    return {larger<Int>(leader - kernel_size + 1, 0), element + 1};
  }
  const Int left = kernel_size / 2;
  const Int right = left + kernel_size % 2 - 1;
  const Int leader = smaller<Int>(first + stride / 2, size - 1);
  const Int overhang = leader + right >= size ? size - right - leader - 1 : 0;
  const Int start = larger<Int>(leader - left, 0) + overhang;
  return {start, start + kernel_size};
}

// The window of `element` of a dilation group. An element past the end has the last one's window.
NA_HOST_DEVICE constexpr Window group_window(int64_t element, int64_t size, int64_t kernel_size, int64_t stride,
                                             bool is_causal) {
  element = smaller(element, size - 1);
  return shared_window(element, element / stride * stride, size, kernel_size, stride, is_causal);
}

}  // namespace na_deploy
