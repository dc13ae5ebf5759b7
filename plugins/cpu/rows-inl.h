// Rows of float32, float16 or bfloat16 to and from float32, and four rows at once to lanes. Per target: included once
// for each instruction set.
#if defined(NA_DEPLOY_CPU_ROWS_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef NA_DEPLOY_CPU_ROWS_INL_H_
#undef NA_DEPLOY_CPU_ROWS_INL_H_
#else
#define NA_DEPLOY_CPU_ROWS_INL_H_
#endif

#include <algorithm>
#include <cstdint>
#include <cstring>

#include <hwy/highway.h>

#include "plan.h"

HWY_BEFORE_NAMESPACE();
namespace na_deploy::cpu {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

inline float widen(float number) { return number; }
inline float widen(hwy::float16_t number) { return hwy::F32FromF16(number); }
inline float widen(hwy::bfloat16_t number) { return hwy::F32FromBF16(number); }

template <class D, typename T>
HWY_INLINE hn::Vec<D> load_wide(D d, const T* from) {
  const hn::Rebind<T, D> narrow;
  return hn::PromoteTo(d, hn::LoadU(narrow, from));
}

#if HWY_ARCH_X86 && HWY_TARGET > HWY_AVX2
// Without an instruction for it, Highway makes finite numbers of float16's infinity and NaN.
template <class D>
HWY_INLINE hn::Vec<D> load_wide(D d, const hwy::float16_t* from) {
  const hn::Rebind<hwy::float16_t, D> narrow;
  const hn::RebindToUnsigned<D> wide;
  const auto half = hn::LoadU(narrow, from);
  const auto bits = hn::PromoteTo(wide, hn::BitCast(hn::RebindToUnsigned<decltype(narrow)>(), half));
  const auto magnitude = hn::And(bits, hn::Set(wide, 0x7fff));
  const auto sign = hn::ShiftLeft<16>(hn::Xor(bits, magnitude));
  const auto none = hn::Or(hn::Or(sign, hn::Set(wide, 0x7f800000)), hn::ShiftLeft<13>(magnitude));
  const auto is_number = hn::RebindMask(d, hn::Lt(magnitude, hn::Set(wide, 0x7c00)));
  return hn::IfThenElse(is_number, hn::PromoteTo(d, half), hn::BitCast(d, none));
}
#endif

// to[i] = from[i] for i < count, and 0 from there to `padded`, a whole number of vectors.
template <class D, typename T>
HWY_INLINE void load_row(D d, const T* HWY_RESTRICT from, int64_t count, int64_t padded, float* HWY_RESTRICT to) {
  constexpr int64_t kLanes = hn::MaxLanes(D());
  int64_t i = 0;
  if constexpr (sizeof(T) == sizeof(float)) {
    for (; i + kLanes <= count; i += kLanes) hn::Store(hn::LoadU(d, from + i), d, to + i);
  } else {
    for (; i + kLanes <= count; i += kLanes) hn::Store(load_wide(d, from + i), d, to + i);
  }
  for (; i < count; ++i) to[i] = widen(from[i]);
  for (; i < padded; ++i) to[i] = 0.0F;
}

// Returns whether all of `count`, a whole number of vectors, are numbers; false also where infinities cancel.
template <class D>
HWY_INLINE bool are_numbers(D d, const float* from, int64_t count) {
  constexpr int64_t kLanes = hn::MaxLanes(D());
  hn::Vec<D> all = hn::Zero(d);
  for (int64_t i = 0; i < count; i += kLanes) all = hn::Add(all, hn::Load(d, from + i));
  return hn::AllTrue(d, hn::Eq(all, all));
}

// to[i] = factor * from[i], rounded to the nearest. `from` may be read to the end of its last vector.
template <class D>
HWY_INLINE void store_row(D d, hn::Vec<D> factor, const float* HWY_RESTRICT from, int64_t count,
                          float* HWY_RESTRICT to) {
  constexpr int64_t kLanes = hn::MaxLanes(D());
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) hn::StoreU(hn::Mul(factor, hn::Load(d, from + i)), d, to + i);
  if (i < count) hn::StoreN(hn::Mul(factor, hn::Load(d, from + i)), d, to + i, static_cast<size_t>(count - i));
}

template <class D>
HWY_INLINE void store_row(D d, hn::Vec<D> factor, const float* HWY_RESTRICT from, int64_t count,
                          hwy::float16_t* HWY_RESTRICT to) {
  constexpr int64_t kLanes = hn::MaxLanes(D());
  const hn::Rebind<hwy::float16_t, D> narrow;
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) {
    hn::StoreU(hn::DemoteTo(narrow, hn::Mul(factor, hn::Load(d, from + i))), narrow, to + i);
  }
  for (; i < count; ++i) to[i] = hwy::F16FromF32(hn::GetLane(factor) * from[i]);
}

// Rounds to even in integers, because versions of Highway round differently.
template <class D>
HWY_INLINE void store_row(D d, hn::Vec<D> factor, const float* HWY_RESTRICT from, int64_t count,
                          hwy::bfloat16_t* HWY_RESTRICT to) {
  constexpr int64_t kLanes = hn::MaxLanes(D());
  const hn::RebindToUnsigned<D> bits_tag;
  const hn::Rebind<uint16_t, D> half;
  const hn::Rebind<hwy::bfloat16_t, D> narrow;
  for (int64_t i = 0; i < count; i += kLanes) {
    const auto numbers = hn::Mul(factor, hn::Load(d, from + i));
    const auto bits = hn::BitCast(bits_tag, numbers);
    const auto upper = hn::ShiftRight<16>(bits);
    const auto is_odd = hn::And(upper, hn::Set(bits_tag, 1));
    const auto rounded = hn::ShiftRight<16>(hn::Add(bits, hn::Add(is_odd, hn::Set(bits_tag, 0x7fff))));
    const auto is_nan = hn::RebindMask(bits_tag, hn::IsNaN(numbers));
    const auto whole = hn::IfThenElse(is_nan, hn::Or(upper, hn::Set(bits_tag, 0x40)), rounded);
    const auto result = hn::BitCast(narrow, hn::TruncateTo(half, whole));
    if (count - i >= kLanes) {
      hn::StoreU(result, narrow, to + i);
    } else {
      hn::StoreN(result, narrow, to + i, static_cast<size_t>(count - i));
    }
  }
}

// Rounds numbers that are not NaN or infinite to bfloat16, halves up, as the lower bits of each lane.
template <class D>
HWY_INLINE hn::Vec<hn::RebindToUnsigned<D>> rounded_halves(D d, hn::Vec<D> numbers) {
  const hn::RebindToUnsigned<D> bits;
  (void)d;
  return hn::ShiftRight<16>(hn::Add(hn::BitCast(bits, numbers), hn::Set(bits, 0x8000)));
}

// to[c] = (even[c], odd[c]) for c < count, and zeros from there to `padded`, a whole number of vectors of D. `odd` may
// be null, for zeros.
template <class D>
HWY_INLINE void interleave_rows(D, const hwy::bfloat16_t* HWY_RESTRICT even, const hwy::bfloat16_t* HWY_RESTRICT odd,
                                int64_t count, int64_t padded, hwy::bfloat16_t* HWY_RESTRICT to) {
  const hn::Repartition<uint16_t, D> tag;
  const hn::Repartition<hwy::bfloat16_t, D> narrow;
  constexpr int64_t kLanes = 2 * hn::MaxLanes(D());
  int64_t c = 0;
  for (; c + kLanes <= count; c += kLanes) {
    const auto a = hn::BitCast(tag, hn::LoadU(narrow, even + c));
    const auto b = odd == nullptr ? hn::Zero(tag) : hn::BitCast(tag, hn::LoadU(narrow, odd + c));
    hn::StoreU(hn::BitCast(narrow, hn::InterleaveWholeLower(tag, a, b)), narrow, to + 2 * c);
    hn::StoreU(hn::BitCast(narrow, hn::InterleaveWholeUpper(tag, a, b)), narrow, to + 2 * c + kLanes);
  }
  if (c < padded) std::memset(static_cast<void*>(to + 2 * c), 0, static_cast<size_t>(padded - c) * 2 * sizeof *to);
  for (; c < count; ++c) {
    std::memcpy(static_cast<void*>(to + 2 * c), even + c, sizeof *even);
    if (odd != nullptr) std::memcpy(static_cast<void*>(to + 2 * c + 1), odd + c, sizeof *odd);
  }
}

// One block of 128 bits, four lanes, of each of the four vectors: channels 4 * kBlock and on.
template <size_t kBlock, class D>
HWY_INLINE void store_blocks(D, const hn::Vec<D> (&channels)[4], float* to, int64_t step) {
  if constexpr (kBlock < hn::MaxLanes(D()) / 4) {
    const hn::FixedTag<float, 4> block;
    for (int i = 0; i < 4; ++i) {
      hn::StoreU(hn::ExtractBlock<kBlock>(channels[i]), block, to + (4 * static_cast<int64_t>(kBlock) + i) * step);
    }
  } else {
    (void)channels, (void)to, (void)step;
  }
}

// to[c * step + lane] = load(rows[lane] + c)[0] for four lanes and a whole number of vectors of channels; `load`
// returns a vector.
template <class D, class Load>
HWY_INLINE void transpose_rows(D d, const Load& load, const float* const (&rows)[kQuad], int64_t channels, float* to,
                               int64_t step) {
  constexpr int64_t kLanes = hn::MaxLanes(D());
  const hn::RepartitionToWide<D> wide;
  const auto low = [&](auto a, auto b) {
    return hn::BitCast(d, hn::InterleaveLower(wide, hn::BitCast(wide, a), hn::BitCast(wide, b)));
  };
  const auto high = [&](auto a, auto b) {
    return hn::BitCast(d, hn::InterleaveUpper(wide, hn::BitCast(wide, a), hn::BitCast(wide, b)));
  };
  for (int64_t c = 0; c < channels; c += kLanes) {
    const auto row0 = load(rows[0] + c);
    const auto row1 = load(rows[1] + c);
    const auto row2 = load(rows[2] + c);
    const auto row3 = load(rows[3] + c);
    const auto low01 = hn::InterleaveLower(d, row0, row1);
    const auto low23 = hn::InterleaveLower(d, row2, row3);
    const auto high01 = hn::InterleaveUpper(d, row0, row1);
    const auto high23 = hn::InterleaveUpper(d, row2, row3);
    const hn::Vec<D> channel[4] = {low(low01, low23), high(low01, low23), low(high01, high23), high(high01, high23)};
    float* at = to + c * step;
    store_blocks<0>(d, channel, at, step);
    store_blocks<1>(d, channel, at, step);
    store_blocks<2>(d, channel, at, step);
    store_blocks<3>(d, channel, at, step);
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace na_deploy::cpu
HWY_AFTER_NAMESPACE();

#endif
