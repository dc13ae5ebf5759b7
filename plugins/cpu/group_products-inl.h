// The two matrix products of a whole group. Per target: included once for each instruction set.
#if defined(NA_DEPLOY_CPU_GROUP_PRODUCTS_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef NA_DEPLOY_CPU_GROUP_PRODUCTS_INL_H_
#undef NA_DEPLOY_CPU_GROUP_PRODUCTS_INL_H_
#else
#define NA_DEPLOY_CPU_GROUP_PRODUCTS_INL_H_
#endif

#include <cstdint>
#include <type_traits>

#include <hwy/highway.h>

#include "plan.h"
#include "products-inl.h"
#include "vectors-inl.h"

HWY_BEFORE_NAMESPACE();
namespace na_deploy::cpu {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

// The first product: score[key][lane] = bias[key][lane] + sum over channels of query[channel][lane] * key[channel], and
// each lane's maximum. Few further queries stand in rows, and so do their scores, without their maximum.
template <class N>
struct GroupScores {
  float scale = 1.0F;                          // with Pairs; single queries have it already
  const typename N::T* query = nullptr;        // (steps, lanes, kWidth channels)
  const typename N::T* const* keys = nullptr;  // (count) rows
  int64_t steps = 0;
  int64_t count = 0;
  int64_t lanes = 0;
  const float* bias = nullptr;  // (count, bias_step), the further queries after the lanes; null without one
  int64_t bias_step = 0;
  float* score = nullptr;    // (count, lanes)
  float* maximum = nullptr;  // (lanes)
  int64_t few = 0;           // further queries, of a whole number of vectors
  const typename N::T* few_query = nullptr;
  int64_t few_query_step = 0;
  float* few_score = nullptr;  // (few, few_score_step), of which `count` are written
  int64_t few_score_step = 0;
};

template <class N, int kKeys, int kVectors>
HWY_INLINE void score_group_keys(FloatTag d, const GroupScores<N>& p, int64_t first, int64_t lane,
                                 Float (&maximum)[kVectors]) {
  const typename N::T* HWY_RESTRICT query = p.query + lane * N::kWidth;
  const typename N::T* row[kKeys];
  Float sums[kKeys][kVectors];
  const float* bias = p.bias == nullptr ? nullptr : p.bias + first * p.bias_step + lane;
  for (int i = 0; i < kKeys; ++i) {
    row[i] = p.keys[first + i];
    for (int v = 0; v < kVectors; ++v) {
      sums[i][v] = N::kWidth > 1 || bias == nullptr ? hn::Zero(d) : hn::Load(d, bias + i * p.bias_step + v * kVector);
    }
  }
  const int64_t step = p.lanes * N::kWidth;
  for (int64_t c = 0; c < p.steps; ++c, query += step) {
    decltype(N::load(d, query)) channel[kVectors];
    for (int v = 0; v < kVectors; ++v) channel[v] = N::load(d, query + v * kVector * N::kWidth);
    for (int i = 0; i < kKeys; ++i) {
      const auto number = N::broadcast(d, row[i] + c * N::kWidth);
      for (int v = 0; v < kVectors; ++v) sums[i][v] = N::multiply_add(d, channel[v], number, sums[i][v]);
    }
  }
  float* HWY_RESTRICT score = p.score + first * p.lanes + lane;
  for (int i = 0; i < kKeys; ++i) {
    for (int v = 0; v < kVectors; ++v) {
      if constexpr (N::kWidth > 1) {  // single ones have scale and bias already
        const Float add = bias == nullptr ? hn::Zero(d) : hn::Load(d, bias + i * p.bias_step + v * kVector);
        sums[i][v] = hn::MulAdd(sums[i][v], hn::Set(d, p.scale), add);
      }
      maximum[v] = hn::Max(maximum[v], sums[i][v]);
      hn::Store(sums[i][v], d, score + i * p.lanes + v * kVector);
    }
  }
}

// The same of one key for each of the few further queries.
template <class N>
HWY_INLINE void score_few(FloatTag d, const GroupScores<N>& p, int64_t key, int64_t few) {
  const typename N::T* query = p.few_query + few * p.few_query_step;
  Float sum = hn::Zero(d);
  for (int64_t c = 0; c < p.steps; c += kVector) {
    sum = N::multiply_add(d, N::load(d, query + c * N::kWidth), N::load(d, p.keys[key] + c * N::kWidth), sum);
  }
  float score = hn::ReduceSum(d, sum);
  if constexpr (N::kWidth > 1) score *= p.scale;
  if (p.bias != nullptr) score += p.bias[key * p.bias_step + p.lanes + few];
  p.few_score[few * p.few_score_step + key] = score;
}

template <class N, int kKeys, int kVectors>
HWY_NOINLINE void score_group_vectors(FloatTag d, const GroupScores<N>& p, int64_t lane) {
  Float maximum[kVectors];
  for (int v = 0; v < kVectors; ++v) maximum[v] = hn::Set(d, kMasked);
  int64_t i = 0;
  for (; i + kKeys <= p.count; i += kKeys) {
    score_group_keys<N, kKeys, kVectors>(d, p, i, lane, maximum);
    if (lane == 0) {
      for (int64_t few = 0; few < p.few; ++few) {
        for (int key = 0; key < kKeys; ++key) score_few(d, p, i + key, few);
      }
    }
  }
  for (; i < p.count; ++i) {
    score_group_keys<N, 1, kVectors>(d, p, i, lane, maximum);
    if (lane == 0) {
      for (int64_t few = 0; few < p.few; ++few) score_few(d, p, i, few);
    }
  }
  for (int v = 0; v < kVectors; ++v) hn::Store(maximum[v], d, p.maximum + lane + v * kVector);
}

template <class N>
HWY_INLINE void score_group(FloatTag d, const GroupScores<N>& p) {
  int64_t lane = 0;
#if NA_DEPLOY_MANY_REGISTERS
  for (; lane + 4 * kVector <= p.lanes; lane += 4 * kVector) score_group_vectors<N, 5, 4>(d, p, lane);
  for (; lane + 3 * kVector <= p.lanes; lane += 3 * kVector) score_group_vectors<N, 7, 3>(d, p, lane);
#endif
  for (; lane + 2 * kVector <= p.lanes; lane += 2 * kVector) score_group_vectors<N, 5, 2>(d, p, lane);
  for (; lane < p.lanes; lane += kVector) score_group_vectors<N, 8, 1>(d, p, lane);
}

// The second product: output[query][channel] = sum over keys of weight[key][query] * value[key][channel].

template <class N, int kQueries, int kVectors>
HWY_NOINLINE void weigh(FloatTag d, const typename N::T* HWY_RESTRICT value, int64_t value_step,
                        const typename N::T* HWY_RESTRICT weight, int64_t weight_step, int64_t query_step,
                        int64_t count, float* HWY_RESTRICT output, int64_t output_step) {
  Float sums[kQueries][kVectors];
  for (int q = 0; q < kQueries; ++q) {
    for (int v = 0; v < kVectors; ++v) sums[q][v] = hn::Zero(d);
  }
  for (int64_t i = 0; i < count; ++i, value += value_step, weight += weight_step) {
    decltype(N::load(d, value)) row[kVectors];
    for (int v = 0; v < kVectors; ++v) row[v] = N::load(d, value + v * kVector * N::kWidth);
    for (int q = 0; q < kQueries; ++q) {
      const auto w = N::broadcast(d, weight + q * query_step);
      for (int v = 0; v < kVectors; ++v) sums[q][v] = N::multiply_add(d, w, row[v], sums[q][v]);
    }
  }
  for (int q = 0; q < kQueries; ++q) {
    for (int v = 0; v < kVectors; ++v) hn::Store(sums[q][v], d, output + q * output_step + v * kVector);
  }
}

// Values are (count, padded, kWidth), outputs (queries, padded).
template <class N>
HWY_INLINE void weigh_values(FloatTag d, const typename N::T* value, int64_t padded, const typename N::T* weight,
                             int64_t weight_step, int64_t query_step, int64_t count, int64_t queries, float* output) {
  const int64_t value_step = padded * N::kWidth;
  int64_t q = 0;
  const auto channels = [&](auto rows) {
    constexpr int kRows = decltype(rows)::value;
    for (; q + kRows <= queries; q += kRows) {
      const typename N::T* w = weight + q * query_step;
      float* to = output + q * padded;
      int64_t c = 0;
      for (; c + 2 * kVector <= padded; c += 2 * kVector) {
        weigh<N, kRows, 2>(d, value + c * N::kWidth, value_step, w, weight_step, query_step, count, to + c, padded);
      }
      if (c < padded) {
        weigh<N, kRows, 1>(d, value + c * N::kWidth, value_step, w, weight_step, query_step, count, to + c, padded);
      }
    }
  };
#if NA_DEPLOY_MANY_REGISTERS
  channels(std::integral_constant<int, 8>());
#endif
  channels(std::integral_constant<int, 4>());
  channels(std::integral_constant<int, 1>());
}

}  // namespace HWY_NAMESPACE
}  // namespace na_deploy::cpu
HWY_AFTER_NAMESPACE();

#endif
