// Powers of two for softmax. Per target: included once for each instruction set.
#if defined(NA_DEPLOY_CPU_EXPONENTIAL_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef NA_DEPLOY_CPU_EXPONENTIAL_INL_H_
#undef NA_DEPLOY_CPU_EXPONENTIAL_INL_H_
#else
#define NA_DEPLOY_CPU_EXPONENTIAL_INL_H_
#endif

#include <cstdint>

#include <hwy/highway.h>

#include "rows-inl.h"

HWY_BEFORE_NAMESPACE();
namespace na_deploy::cpu {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

// 2**x for x <= 0, to 1.5e-7 of its value; 0 below -125, where float32 is about to run out of exponents. NaN stays NaN.
// x = n + r with |r| <= 1/2; the polynomial is the one of fifth degree whose largest relative error there is least.
template <class D, class V = hn::Vec<D>>
HWY_INLINE V exp2_of_negative(D d, V x) {
  const hn::RebindToSigned<D> di;
  // Adding 1.5 * 2**23 rounds to whole numbers, which then stand in the low bits; 127 more makes them float32's
  // exponent.
  const V shift = hn::Set(d, 12582912.0F + 127.0F);
  const V shifted = hn::Add(x, shift);
  const V r = hn::Sub(x, hn::Sub(shifted, shift));
  const V power = hn::BitCast(d, hn::ShiftLeft<23>(hn::BitCast(di, shifted)));
  V p = hn::MulAdd(r, hn::Set(d, 0.001326472731307149F), hn::Set(d, 0.009671512991189957F));
  p = hn::MulAdd(p, r, hn::Set(d, 0.05550733581185341F));
  p = hn::MulAdd(p, r, hn::Set(d, 0.24022242426872253F));
  p = hn::MulAdd(p, r, hn::Set(d, 0.6931470036506653F));
  p = hn::MulAdd(p, r, hn::Set(d, 1.0F));
  return hn::IfThenZeroElse(hn::Lt(x, hn::Set(d, -125.0F)), hn::Mul(p, power));
}

// Turns a vector of lanes' scores of `count` keys, `step` apart, into exponentials and returns their sum. kPairs: into
// those of neighbouring keys as pairs of bfloat16, one after another in half the rows.
template <bool kPairs, class D, class V = hn::Vec<D>>
HWY_INLINE V exponentials(D d, float* score, int64_t step, int64_t count, V maximum) {
  V sum = hn::Zero(d);
  if constexpr (kPairs) {
    float* pair = score;
    for (int64_t i = 0; i < count; i += 2, score += 2 * step, pair += step) {
      const V even = exp2_of_negative(d, hn::Sub(hn::Load(d, score), maximum));
      auto both = rounded_halves(d, even);
      sum = hn::Add(sum, even);
      if (i + 1 < count) {
        const V odd = exp2_of_negative(d, hn::Sub(hn::Load(d, score + step), maximum));
        both = hn::Or(both, hn::ShiftLeft<16>(rounded_halves(d, odd)));
        sum = hn::Add(sum, odd);
      }
      hn::Store(hn::BitCast(d, both), d, pair);
    }
    return sum;
  }
  for (int64_t i = 0; i < count; ++i, score += step) {
    const V weights = exp2_of_negative(d, hn::Sub(hn::Load(d, score), maximum));
    hn::Store(weights, d, score);
    sum = hn::Add(sum, weights);
  }
  return sum;
}

}  // namespace HWY_NAMESPACE
}  // namespace na_deploy::cpu
HWY_AFTER_NAMESPACE();

#endif
