// The two matrix products of a tile. Per target: included once for each instruction set.
#if defined(NA_DEPLOY_CPU_PRODUCTS_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef NA_DEPLOY_CPU_PRODUCTS_INL_H_
#undef NA_DEPLOY_CPU_PRODUCTS_INL_H_
#else
#define NA_DEPLOY_CPU_PRODUCTS_INL_H_
#endif

#include <cstdint>

#include <hwy/highway.h>

#include "plan.h"

HWY_BEFORE_NAMESPACE();
namespace na_deploy {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

// ------------------------------------------------------------------ scores[key][lane] = query[.][lane] · key[key][.]

// Scores of kCount keys, whose rows stand anywhere; query is (channels, lanes).
template <int kCount, class D>
HWY_INLINE void score_keys(D d, const float* HWY_RESTRICT query, const float* const* keys, int64_t channels,
                           float* HWY_RESTRICT score) {
  constexpr int64_t kLanes = hn::MaxLanes(D());
  const float* row[kCount];
  hn::Vec<D> sums[kCount];
  for (int i = 0; i < kCount; ++i) {
    row[i] = keys[i];
    sums[i] = hn::Zero(d);
  }
  for (int64_t c = 0; c < channels; ++c) {
    const hn::Vec<D> channel = hn::Load(d, query + c * kLanes);
    for (int i = 0; i < kCount; ++i) sums[i] = hn::MulAdd(channel, hn::Set(d, row[i][c]), sums[i]);
  }
  for (int i = 0; i < kCount; ++i) hn::Store(sums[i], d, score + i * kLanes);
}

// Scores of `count` keys. Eight sums at once hide the latency of multiply-add, and their rows' addresses fit registers.
template <class D>
HWY_NOINLINE void score_block(D d, const float* query, const float* const* keys, int64_t channels, int64_t count,
                              float* score) {
  constexpr int64_t kLanes = hn::MaxLanes(D());
  int64_t i = 0;
  for (; i + 8 <= count; i += 8) score_keys<8>(d, query, keys + i, channels, score + i * kLanes);
  switch (count - i) {
    case 7:
      return score_keys<7>(d, query, keys + i, channels, score + i * kLanes);
    case 6:
      return score_keys<6>(d, query, keys + i, channels, score + i * kLanes);
    case 5:
      return score_keys<5>(d, query, keys + i, channels, score + i * kLanes);
    case 4:
      return score_keys<4>(d, query, keys + i, channels, score + i * kLanes);
    case 3:
      return score_keys<3>(d, query, keys + i, channels, score + i * kLanes);
    case 2:
      return score_keys<2>(d, query, keys + i, channels, score + i * kLanes);
    case 1:
      return score_keys<1>(d, query, keys + i, channels, score + i * kLanes);
    default:
      return;
  }
}

// ------------------------------------------------------------------ output[lane][.] += weight[key][lane] *
// value[key][.]

// Neighbouring keys of four lanes: their values' rows stand `step` floats apart, their weights a vector apart.
struct WeightedRun {
  const float* value;
  int64_t step;
  const float* weight;
  int64_t count;
};

template <int kVectors, class D>
HWY_INLINE void add_value(D d, const float* value, const float* weight, hn::Vec<D> (&sums)[kQuad][kVectors]) {
  constexpr int64_t kLanes = hn::MaxLanes(D());
  hn::Vec<D> row[kVectors];
  for (int v = 0; v < kVectors; ++v) row[v] = hn::LoadU(d, value + v * kLanes);
  for (int q = 0; q < kQuad; ++q) {
    const hn::Vec<D> w = hn::Set(d, weight[q]);
    for (int v = 0; v < kVectors; ++v) sums[q][v] = hn::MulAdd(w, row[v], sums[q][v]);
  }
}

// kVectors vectors of channels from `channel` on of four lanes' outputs, whose rows stand `stride` floats apart. `keep`
// scales what they hold; null where they hold nothing yet.
template <int kVectors, class D>
HWY_NOINLINE void accumulate(D d, const WeightedRun* runs, int64_t run_count, int64_t channel, const float* keep,
                             float* output, int64_t stride) {
  using V = hn::Vec<D>;
  constexpr int64_t kLanes = hn::MaxLanes(D());
  // Where few vectors make few sums, every other key has its own, since a multiply-add waits for the one before.
  V sums[kQuad][kVectors];
  V odd_sums[kQuad][kVectors];
  for (int q = 0; q < kQuad; ++q) {
    for (int v = 0; v < kVectors; ++v) {
      odd_sums[q][v] = hn::Zero(d);
      sums[q][v] = keep == nullptr
                       ? hn::Zero(d)
                       : hn::Mul(hn::Set(d, keep[q]), hn::Load(d, output + q * stride + channel + v * kLanes));
    }
  }
  for (int64_t run = 0; run < run_count; ++run) {
    const float* HWY_RESTRICT value = runs[run].value + channel;
    const float* HWY_RESTRICT weight = runs[run].weight;
    const int64_t step = runs[run].step;
    int64_t i = 0;
#if HWY_TARGET <= HWY_AVX3 || HWY_ARCH_ARM_A64
    if constexpr (kVectors <= 2) {
      for (; i + 2 <= runs[run].count; i += 2, value += 2 * step, weight += 2 * kLanes) {
        add_value<kVectors>(d, value, weight, sums);
        add_value<kVectors>(d, value + step, weight + kLanes, odd_sums);
      }
    }
#endif
    for (; i < runs[run].count; ++i, value += step, weight += kLanes) add_value<kVectors>(d, value, weight, sums);
  }
  for (int q = 0; q < kQuad; ++q) {
    for (int v = 0; v < kVectors; ++v)
      hn::Store(hn::Add(sums[q][v], odd_sums[q][v]), d, output + q * stride + channel + v * kLanes);
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace na_deploy
HWY_AFTER_NAMESPACE();

#endif
