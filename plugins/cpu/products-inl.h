// The two matrix products of a tile. Per target: included once for each instruction set.
#if defined(NA_DEPLOY_CPU_PRODUCTS_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef NA_DEPLOY_CPU_PRODUCTS_INL_H_
#undef NA_DEPLOY_CPU_PRODUCTS_INL_H_
#else
#define NA_DEPLOY_CPU_PRODUCTS_INL_H_
#endif

#include <cstdint>
#include <cstring>

#include <hwy/highway.h>

#include "plan.h"

// True where the instruction set has 32 vector registers; the others have 16.
#undef NA_DEPLOY_MANY_REGISTERS
#define NA_DEPLOY_MANY_REGISTERS (HWY_TARGET <= HWY_AVX3 || HWY_ARCH_ARM_A64)

HWY_BEFORE_NAMESPACE();
namespace na_deploy::cpu {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

// The numbers of a product: one float32 of each lane for a multiply-add.
struct Singles {
  using T = float;
  static constexpr int64_t kWidth = 1;

  template <class D>
  static HWY_INLINE hn::Vec<D> load(D d, const float* from) {
    return hn::LoadU(d, from);
  }

  template <class D>
  static HWY_INLINE hn::Vec<D> broadcast(D d, const float* from) {
    return hn::Set(d, *from);
  }

  template <class D>
  static HWY_INLINE hn::Vec<D> multiply_add(D, hn::Vec<D> a, hn::Vec<D> b, hn::Vec<D> sum) {
    return hn::MulAdd(a, b, sum);
  }
};

#if HWY_NATIVE_DOT_BF16
// Two bfloat16 of each lane, whose products are summed in float32.
struct Pairs {
  using T = hwy::bfloat16_t;
  static constexpr int64_t kWidth = 2;
  template <class D>
  using Narrow = hn::Repartition<hwy::bfloat16_t, D>;

  template <class D>
  static HWY_INLINE hn::Vec<Narrow<D>> load(D, const hwy::bfloat16_t* from) {
    return hn::LoadU(Narrow<D>(), from);
  }

  template <class D>
  static HWY_INLINE hn::Vec<Narrow<D>> broadcast(D, const hwy::bfloat16_t* from) {
    uint32_t pair;
    std::memcpy(&pair, from, sizeof pair);
    return hn::BitCast(Narrow<D>(), hn::Set(hn::RebindToUnsigned<D>(), pair));
  }

  // The processor's instruction sums neighbours, and leaves Highway's second sum alone.
  template <class D>
  static HWY_INLINE hn::Vec<D> multiply_add(D d, hn::Vec<Narrow<D>> a, hn::Vec<Narrow<D>> b, hn::Vec<D> sum) {
    hn::Vec<D> unused = hn::Zero(d);
    return hn::ReorderWidenMulAccumulate(d, a, b, sum, unused);
  }
};
#else
using Pairs = Singles;
#endif

// The first product: scores[key][lane] = sum over channels of query[channel][lane] * key[key][channel].

// Scores, times `scale`, of kKeys keys, whose rows may lie anywhere, for kVectors vectors of lanes; query is (steps,
// lanes, kWidth channels) and score (keys, lanes).
template <class N, int kKeys, int kVectors, class D>
HWY_INLINE void score_keys(D d, float scale, const typename N::T* HWY_RESTRICT query, const typename N::T* const* keys,
                           int64_t steps, float* HWY_RESTRICT score, int64_t lanes) {
  constexpr int64_t kLanes = hn::MaxLanes(D());
  const typename N::T* row[kKeys];
  hn::Vec<D> sums[kKeys][kVectors];
  for (int i = 0; i < kKeys; ++i) {
    row[i] = keys[i];
    for (int v = 0; v < kVectors; ++v) sums[i][v] = hn::Zero(d);
  }
  for (int64_t c = 0; c < steps; ++c, query += lanes * N::kWidth) {
    decltype(N::load(d, query)) channel[kVectors];
    for (int v = 0; v < kVectors; ++v) channel[v] = N::load(d, query + v * kLanes * N::kWidth);
    for (int i = 0; i < kKeys; ++i) {
      const auto number = N::broadcast(d, row[i] + c * N::kWidth);
      for (int v = 0; v < kVectors; ++v) sums[i][v] = N::multiply_add(d, channel[v], number, sums[i][v]);
    }
  }
  for (int i = 0; i < kKeys; ++i) {
    for (int v = 0; v < kVectors; ++v) {
      if constexpr (N::kWidth > 1) sums[i][v] = hn::Mul(sums[i][v], hn::Set(d, scale));  // single ones have it already
      hn::Store(sums[i][v], d, score + i * lanes + v * kLanes);
    }
  }
}

// Scores of kMost keys at once, as many as registers hold sums and addresses; then of 4, 2 and 1.
template <class N, int kMost, int kVectors, class D>
HWY_NOINLINE void score_vectors(D d, float scale, const typename N::T* query, const typename N::T* const* keys,
                                int64_t steps, int64_t count, float* score, int64_t lanes) {
  int64_t i = 0;
  for (; i + kMost <= count; i += kMost) {
    score_keys<N, kMost, kVectors>(d, scale, query, keys + i, steps, score + i * lanes, lanes);
  }
  for (; i + 4 <= count; i += 4) {
    score_keys<N, 4, kVectors>(d, scale, query, keys + i, steps, score + i * lanes, lanes);
  }
  if (i + 2 <= count) {
    score_keys<N, 2, kVectors>(d, scale, query, keys + i, steps, score + i * lanes, lanes);
    i += 2;
  }
  if (i < count) score_keys<N, 1, kVectors>(d, scale, query, keys + i, steps, score + i * lanes, lanes);
}

// Scores of `count` keys. Each key's number is loaded once for as many vectors as registers allow: loads bound this
// product.
template <class N, class D>
HWY_INLINE void score_block(D d, float scale, const typename N::T* query, const typename N::T* const* keys,
                            int64_t steps, int64_t count, float* score, int64_t lanes) {
  constexpr int64_t kLanes = hn::MaxLanes(D());
  constexpr int64_t kWidth = N::kWidth;
  int64_t lane = 0;
#if NA_DEPLOY_MANY_REGISTERS
  for (; lane + 4 * kLanes <= lanes; lane += 4 * kLanes) {
    score_vectors<N, 5, 4>(d, scale, query + lane * kWidth, keys, steps, count, score + lane, lanes);
  }
#endif
  for (; lane + 2 * kLanes <= lanes; lane += 2 * kLanes) {
    score_vectors<N, 6, 2>(d, scale, query + lane * kWidth, keys, steps, count, score + lane, lanes);
  }
  for (; lane < lanes; lane += kLanes) {
    score_vectors<N, 8, 1>(d, scale, query + lane * kWidth, keys, steps, count, score + lane, lanes);
  }
}

// The second product: output[lane][channel] += weight[key][lane] * value[key][channel].

// Neighbouring keys, or pairs of keys, of four lanes: rows of their values are `step` apart, those of their weights
// (lanes, kWidth keys).
template <class N>
struct WeightedRun {
  const typename N::T* value;
  int64_t step;
  const typename N::T* weight;
  int64_t count;
};

template <class N, int kVectors, class D>
HWY_INLINE void add_value(D d, const typename N::T* value, const typename N::T* weight,
                          hn::Vec<D> (&sums)[kQuad][kVectors], int64_t lane_step = N::kWidth) {
  constexpr int64_t kLanes = hn::MaxLanes(D());
  decltype(N::load(d, value)) row[kVectors];
  for (int v = 0; v < kVectors; ++v) row[v] = N::load(d, value + v * kLanes * N::kWidth);
  for (int q = 0; q < kQuad; ++q) {
    const auto w = N::broadcast(d, weight + q * lane_step);
    for (int v = 0; v < kVectors; ++v) sums[q][v] = N::multiply_add(d, w, row[v], sums[q][v]);
  }
}

// Computes kVectors vectors of channels, from `channel` on, of four lanes' outputs, whose rows are `stride` floats
// apart. `keep` scales what they already hold; null where they hold nothing yet.
template <class N, int kVectors, class D>
HWY_NOINLINE void accumulate(D d, const WeightedRun<N>* runs, int64_t run_count, int64_t channel, const float* keep,
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
    const typename N::T* HWY_RESTRICT value = runs[run].value + channel * N::kWidth;
    const typename N::T* HWY_RESTRICT weight = runs[run].weight;
    const int64_t weights = lanes * N::kWidth;
    const int64_t step = runs[run].step;
    int64_t i = 0;
#if NA_DEPLOY_MANY_REGISTERS
    if constexpr (kVectors <= 2) {
      for (; i + 2 <= runs[run].count; i += 2, value += 2 * step, weight += 2 * weights) {
        add_value<N, kVectors>(d, value, weight, sums);
        add_value<N, kVectors>(d, value + step, weight + weights, odd_sums);
      }
    }
#endif
    for (; i < runs[run].count; ++i, value += step, weight += weights) add_value<N, kVectors>(d, value, weight, sums);
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
