// A problem as kernels read it: always three axes, sizes of one image in 32 bits, distances between elements
// precomputed.
#pragma once

#include <cmath>
#include <cstdint>

#include "divisor.h"
#include "na_params.h"
#include "padding.h"
#include "window.h"

namespace na_deploy::cuda {

constexpr int kAxes = 3;

// One number for each axis, passed by value: device code cannot refer to constant arrays of the host.
struct Sizes {
  int at[kAxes];
  NA_HOST_DEVICE constexpr int operator[](int axis) const { return at[axis]; }
};

// One axis. Axes that a problem does not have come first, with length 1 and a window of 1.
//
// Tensors hold `length` positions, each with a query. With padding, windows may reach past them.
struct AxisSizes {
  int32_t length = 1;
  int32_t kernel_size = 1;
  int32_t dilation = 1;
  int32_t stride = 1;
  int32_t is_causal = 0;
  int32_t longest = 1;  // positions of the longest dilation group
  int32_t longer = 1;   // groups of that length; the others have one position less
  Divisor by_stride;
};

// Number of positions of an axis in a dilation group.
NA_HOST_DEVICE int32_t group_size(const AxisSizes& axis, int32_t group) {
  return axis.longest - (group < axis.longer ? 0 : 1);
}

// Number of positions of a dilation group, padded to at least one window.
NA_HOST_DEVICE int32_t reached_size(const AxisSizes& axis, int32_t group) {
  const int32_t size = group_size(axis, group);
  return size < axis.kernel_size ? axis.kernel_size : size;
}

// The window of `element`, less than `size`, of a dilation group.
NA_HOST_DEVICE BasicWindow<int32_t> axis_window(const AxisSizes& axis, int32_t size, int32_t element) {
  const int32_t first = quotient(element, axis.by_stride) * axis.stride;
  return shared_window(element, first, size, axis.kernel_size, axis.stride, axis.is_causal != 0);
}

struct CudaProblem {
  AxisSizes axis[kAxes];
  int32_t heads = 0;
  int32_t key_heads = 1;
  Divisor by_heads_per_key;
  int32_t head_dim = 0;
  int32_t value_dim = 0;
  int32_t additional = 0;
  int32_t positions = 0;  // positions of one image
  int64_t batch = 0;
  float scale = 1.0F;

  // Elements between neighbouring positions; a head's channels lie together.
  int32_t query_position = 0;
  int32_t key_position = 0;
  int32_t value_position = 0;
  int32_t distance[kAxes] = {1, 1, 1};       // positions between neighbours on an axis
  int32_t bias_distance[kAxes] = {1, 1, 1};  // elements of a head's bias between neighbouring offsets on an axis

  const void* query = nullptr;
  const void* key = nullptr;
  const void* value = nullptr;
  const void* rel_pos_bias = nullptr;
  const void* additional_key = nullptr;
  const void* additional_value = nullptr;
  const void* padding_key = nullptr;  // (H, D), for every position at or past `length` on any axis
  const void* padding_value = nullptr;
  void* output = nullptr;
  float* lse = nullptr;
};

// Converts checked parameters. `width`: bytes of an element.
inline CudaProblem make_cuda_problem(const na_params& p, int width) {
  CudaProblem r;
  int64_t positions = 1;
  for (int a = 0; a < p.rank; ++a) {
    AxisSizes& axis = r.axis[kAxes - p.rank + a];
    axis.length = static_cast<int32_t>(p.length[a]);
    axis.kernel_size = static_cast<int32_t>(p.kernel_size[a]);
    axis.dilation = static_cast<int32_t>(p.dilation[a]);
    axis.stride = static_cast<int32_t>(p.stride[a]);
    axis.is_causal = static_cast<int32_t>(p.is_causal[a]);
    axis.longest = static_cast<int32_t>(group_length(p.length[a], p.dilation[a], 0));
    axis.longer = axis.length - (axis.longest - 1) * axis.dilation;
    axis.by_stride = make_divisor(axis.stride);
    positions *= p.length[a];
  }
  r.positions = static_cast<int32_t>(positions);
  for (int a = kAxes - 1; a > 0; --a) r.distance[a - 1] = r.distance[a] * r.axis[a].length;
  r.batch = p.batch;
  r.heads = static_cast<int32_t>(p.heads);
  r.key_heads = static_cast<int32_t>(p.key_heads);
  r.by_heads_per_key = make_divisor(static_cast<int32_t>(p.heads / p.key_heads));
  for (int a = kAxes - 1; a > 0 && p.rel_pos_bias != nullptr; --a)
    r.bias_distance[a - 1] = r.bias_distance[a] * (2 * r.axis[a].kernel_size - 1);
  r.head_dim = static_cast<int32_t>(p.head_dim);
  r.value_dim = static_cast<int32_t>(p.value_dim);
  r.additional = static_cast<int32_t>(p.additional);
  r.scale = p.scale != 0.0F ? p.scale : 1.0F / std::sqrt(static_cast<float>(p.head_dim));
  r.query = p.query;
  r.rel_pos_bias = p.rel_pos_bias;
  r.output = p.output;
  r.lse = p.lse;
  if (p.packed != 0) {
    const int64_t part = p.heads * p.head_dim;
    const auto* base = static_cast<const unsigned char*>(p.query);
    r.key = base == nullptr ? nullptr : base + part * width;
    r.value = base == nullptr ? nullptr : base + 2 * part * width;
    r.query_position = r.key_position = r.value_position = static_cast<int32_t>(3 * part);
    const auto* padding = static_cast<const unsigned char*>(p.padding);
    r.padding_key = padding == nullptr ? nullptr : padding + part * width;
    r.padding_value = padding == nullptr ? nullptr : padding + 2 * part * width;
    return r;
  }
  r.key = p.key;
  r.value = p.value;
  r.additional_key = p.additional_key;
  r.additional_value = p.additional_value;
  r.query_position = static_cast<int32_t>(p.heads * p.head_dim);
  r.key_position = static_cast<int32_t>(p.key_heads * p.head_dim);
  r.value_position = static_cast<int32_t>(p.key_heads * p.value_dim);
  return r;
}

}  // namespace na_deploy::cuda
