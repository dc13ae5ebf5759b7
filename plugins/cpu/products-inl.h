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

// True where the instruction set has 32 vector registers; the others have 16.
#undef NA_DEPLOY_MANY_REGISTERS
#define NA_DEPLOY_MANY_REGISTERS (HWY_TARGET <= HWY_AVX3 || HWY_ARCH_ARM_A64)

HWY_BEFORE_NAMESPACE();
namespace na_deploy::cpu {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

// The first product: scores[key][lane] = sum over channels of query[channel][lane] * key[key][channel].

// Scores of kKeys keys, whose rows may lie anywhere, for kVectors vectors of lanes; query is (channels, lanes) and
// score (keys, lanes).
template <int kKeys, int kVectors, class D>
HWY_INLINE void score_keys(D d, const float* HWY_RESTRICT query, const float* const* keys, int64_t channels,
                           float* HWY_RESTRICT score, int64_t lanes) {
  constexpr int64_t kVector = hn::MaxLanes(D());
  const float* row[kKeys];
  hn::Vec<D> sums[kKeys][kVectors];
  for (int i = 0; i < kKeys; ++i) {
    row[i] = keys[i];
    for (int v = 0; v < kVectors; ++v) sums[i][v] = hn::Zero(d);
  }
  for (int64_t c = 0; c < channels; ++c, query += lanes) {
    hn::Vec<D> channel[kVectors];
    for (int v = 0; v < kVectors; ++v) channel[v] = hn::Load(d, query + v * kVector);
    for (int i = 0; i < kKeys; ++i) {
      const hn::Vec<D> number = hn::Set(d, row[i][c]);
      for (int v = 0; v < kVectors; ++v) sums[i][v] = hn::MulAdd(channel[v], number, sums[i][v]);
    }
  }
  for (int i = 0; i < kKeys; ++i) {
    for (int v = 0; v < kVectors; ++v) hn::Store(sums[i][v], d, score + i * lanes + v * kVector);
  }
}

// Scores of kMost keys at once, as many as registers hold sums and addresses; then of 4, 2 and 1.
template <int kMost, int kVectors, class D>
HWY_NOINLINE void score_vectors(D d, const float* query, const float* const* keys, int64_t channels, int64_t count,
                                float* score, int64_t lanes) {
  int64_t i = 0;
  for (; i + kMost <= count; i += kMost) {
    score_keys<kMost, kVectors>(d, query, keys + i, channels, score + i * lanes, lanes);
  }
  for (; i + 4 <= count; i += 4) score_keys<4, kVectors>(d, query, keys + i, channels, score + i * lanes, lanes);
  if (i + 2 <= count) {
    score_keys<2, kVectors>(d, query, keys + i, channels, score + i * lanes, lanes);
    i += 2;
  }
  if (i < count) score_keys<1, kVectors>(d, query, keys + i, channels, score + i * lanes, lanes);
}

// Scores of `count` keys. Each key's number is loaded once for as many vectors as registers allow: loads bound this
// product.
template <class D>
HWY_INLINE void score_block(D d, const float* query, const float* const* keys, int64_t channels, int64_t count,
                            float* score, int64_t lanes) {
  constexpr int64_t kVector = hn::MaxLanes(D());
  int64_t lane = 0;
#if NA_DEPLOY_MANY_REGISTERS
  for (; lane + 4 * kVector <= lanes; lane += 4 * kVector) {
    score_vectors<5, 4>(d, query + lane, keys, channels, count, score + lane, lanes);
  }
#endif
  for (; lane + 2 * kVector <= lanes; lane += 2 * kVector) {
    score_vectors<6, 2>(d, query + lane, keys, channels, count, score + lane, lanes);
  }
  for (; lane < lanes; lane += kVector) {
    score_vectors<8, 1>(d, query + lane, keys, channels, count, score + lane, lanes);
  }
}

// The second product: output[lane][channel] += weight[key][lane] * value[key][channel].

// Neighbouring keys of four lanes: their values' rows are `step` floats apart, their weights `lanes`.
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

// Computes kVectors vectors of channels, from `channel` on, of four lanes' outputs, whose rows are `stride` floats
// apart. `keep` scales what they already hold; null where they hold nothing yet.
template <int kVectors, class D>
HWY_NOINLINE void accumulate(D d, const WeightedRun* runs, int64_t run_count, int64_t channel, const float* keep,
                             float* output, int64_t stride, int64_t lanes) {
  using V = hn::Vec<D>;
  constexpr int64_t kLanes = hn::MaxLanes(D());
  // Every other key has sums of its own where there are few vectors, because each multiply-add waits for the one
  // before.
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
#if NA_DEPLOY_MANY_REGISTERS
    if constexpr (kVectors <= 2) {
      for (; i + 2 <= runs[run].count; i += 2, value += 2 * step, weight += 2 * lanes) {
        add_value<kVectors>(d, value, weight, sums);
        add_value<kVectors>(d, value + step, weight + lanes, odd_sums);
      }
    }
#endif
    for (; i < runs[run].count; ++i, value += step, weight += lanes) add_value<kVectors>(d, value, weight, sums);
  }
  for (int q = 0; q < kQuad; ++q) {
    for (int v = 0; v < kVectors; ++v)
      hn::Store(hn::Add(sums[q][v], odd_sums[q][v]), d, output + q * stride + channel + v * kLanes);
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace na_deploy::cpu
HWY_AFTER_NAMESPACE();

#endif
