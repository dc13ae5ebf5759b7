// The plain kernel: one warp for each query and head, one key after another. It covers every problem and is simple
// enough to be trusted; the other kernels are compared with it.
#pragma once

#include <cmath>
#include <cstdint>

#include "device.h"
#include "problem.h"

namespace na_deploy::cuda {

constexpr int kPlainThreads = 128;
constexpr int kPlainChannels = 8;  // channels per lane, so up to 256 of a head

// Channels per lane of heads of up to `dim` channels.
NA_HOST_DEVICE constexpr int plain_channels(int dim) { return (dim + 31) / 32; }

// A query's dilation group, its element there, and its window.
struct QueryWindow {
  int32_t group;
  int32_t element;
  int32_t start;
  int32_t end;
};

NA_DEVICE QueryWindow query_window(const AxisSizes& axis, int32_t position) {
  QueryWindow r;
  r.group = position % axis.dilation;
  r.element = position / axis.dilation;
  const BasicWindow<int32_t> window = axis_window(axis, reached_size(axis, r.group), r.element);
  r.start = window.start;
  r.end = window.end;
  return r;
}

// The softmax-weighted sum so far: largest score, sum of weights relative to it, and this lane's channels.
template <int kChannels>
struct RunningSum {
  float peak = -INFINITY;
  float total = 0.0F;
  float channel[kChannels] = {};

  template <typename T>
  NA_DEVICE void add(float score, const T* value, int lane, int channels) {
    const float higher = score > peak ? score : peak;
    const float base = higher == -INFINITY ? 0.0F : higher;  // scores of -infinity, also the first ones, weigh nothing
    const float fade = dev::exp2((peak - base) * 1.44269504F);
    const float weight = dev::exp2((score - base) * 1.44269504F);
    total = total * fade + weight;
    NA_UNROLL
    for (int i = 0; i < kChannels; ++i) {
      const int c = i * 32 + lane;
      channel[i] = channel[i] * fade + (c < channels ? weight * dev::to_float(value[c]) : 0.0F);
    }
    peak = higher;
  }
};

template <typename T, int kChannels>
NA_DEVICE float warp_product(const float (&query)[kChannels], const T* key, int lane, int channels) {
  float sum = 0.0F;
  NA_UNROLL
  for (int i = 0; i < kChannels; ++i) {
    const int c = i * 32 + lane;
    if (c < channels) sum += query[i] * dev::to_float(key[c]);
  }
  NA_UNROLL
  for (int mask = 16; mask > 0; mask /= 2) sum += dev::shuffle_xor(sum, mask);
  return sum;
}

template <typename T, int kChannels>
NA_DEVICE void plain_query(const CudaProblem& p, int64_t number, int lane) {
  const auto head = static_cast<int32_t>(number % p.heads);
  const int64_t place = number / p.heads;  // image and position
  const auto position = static_cast<int32_t>(place % p.positions);
  const int64_t image = place / p.positions;
  const int32_t key_head = quotient(head, p.by_heads_per_key);

  QueryWindow window[kAxes];
  int32_t rest = position;
  NA_UNROLL
  for (int a = kAxes - 1; a >= 0; --a) {
    window[a] = query_window(p.axis[a], rest % p.axis[a].length);
    rest /= p.axis[a].length;
  }
  float query[kChannels] = {};
  const T* from = static_cast<const T*>(p.query) + place * p.query_position + int64_t{head} * p.head_dim;
  NA_UNROLL
  for (int i = 0; i < kChannels; ++i) {
    const int c = i * 32 + lane;
    if (c < p.head_dim) query[i] = dev::to_float(from[c]) * p.scale;
  }
  const T* keys = static_cast<const T*>(p.key) + image * p.positions * p.key_position + int64_t{key_head} * p.head_dim;
  const T* values =
      static_cast<const T*>(p.value) + image * p.positions * p.value_position + int64_t{key_head} * p.value_dim;
  const T* bias = static_cast<const T*>(p.rel_pos_bias);

  RunningSum<kChannels> sum;
  for (int32_t z = window[0].start; z < window[0].end; ++z) {
    for (int32_t y = window[1].start; y < window[1].end; ++y) {
      for (int32_t x = window[2].start; x < window[2].end; ++x) {
        const int32_t element[kAxes] = {z, y, x};
        int64_t at = 0;
        int64_t index = head;
        bool is_behind = false;
        NA_UNROLL
        for (int a = 0; a < kAxes; ++a) {
          const AxisSizes& axis = p.axis[a];
          const int32_t key_at = element[a] * axis.dilation + window[a].group;
          is_behind = is_behind || key_at >= axis.length;
          at = at * axis.length + key_at;
          index = index * (2 * axis.kernel_size - 1) + element[a] - window[a].element + axis.kernel_size - 1;
        }
        const T* key = is_behind ? static_cast<const T*>(p.padding_key) + int64_t{key_head} * p.head_dim
                                 : keys + at * p.key_position;
        const T* value = is_behind ? static_cast<const T*>(p.padding_value) + int64_t{key_head} * p.value_dim
                                   : values + at * p.value_position;
        float score = warp_product(query, key, lane, p.head_dim);
        if (bias != nullptr) score += dev::to_float(bias[index]);
        sum.add(score, value, lane, p.value_dim);
      }
    }
  }
  for (int32_t m = 0; m < p.additional; ++m) {
    const int64_t row = (image * p.additional + m) * p.key_heads + key_head;
    const T* key = static_cast<const T*>(p.additional_key) + row * p.head_dim;
    const T* value = static_cast<const T*>(p.additional_value) + row * p.value_dim;
    sum.add(warp_product(query, key, lane, p.head_dim), value, lane, p.value_dim);
  }
  T* to = static_cast<T*>(p.output) + number * p.value_dim;
  NA_UNROLL
  for (int i = 0; i < kChannels; ++i) {
    const int c = i * 32 + lane;
    if (c < p.value_dim) dev::from_float(sum.channel[i] / sum.total, to[c]);
  }
  if (p.lse != nullptr && lane == 0) p.lse[number] = sum.peak + dev::log(sum.total);
}

// Computes a query again if a faster kernel, which multiplies keys that the query does not see by zeros, has written
// what is no number: infinity times zero is none. The warp calls it after sync_warp().
template <typename T, int kChannels>
NA_DEVICE void mend_query(const CudaProblem& p, int64_t number, int lane) {
  const T* own = static_cast<const T*>(p.output) + number * p.value_dim;
  bool is_spoiled = false;
  NA_NO_UNROLL
  for (int c = lane; c < p.value_dim; c += 32) {
    const float written = dev::to_float(own[c]);
    is_spoiled = is_spoiled || written != written;
  }
  if (!dev::any(is_spoiled)) return;
  dev::computed_again();
  plain_query<T, kChannels>(p, number, lane);
}

template <typename T>
NA_DEVICE void plain_kernel(const CudaProblem& p) {
  const int64_t queries = p.batch * p.positions * p.heads;
  const int64_t warps = dev::blocks() * (dev::threads() / 32);
  const int lane = dev::thread() % 32;
  for (int64_t n = dev::block() * (dev::threads() / 32) + dev::thread() / 32; n < queries; n += warps) {
    plain_query<T, kPlainChannels>(p, n, lane);
  }
}

}  // namespace na_deploy::cuda
