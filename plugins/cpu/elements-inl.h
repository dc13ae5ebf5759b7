// Rows of float32, float16 or bfloat16 to and from float32. Per target: included once for each instruction set.
#if defined(NA_DEPLOY_CPU_ELEMENTS_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef NA_DEPLOY_CPU_ELEMENTS_INL_H_
#undef NA_DEPLOY_CPU_ELEMENTS_INL_H_
#else
#define NA_DEPLOY_CPU_ELEMENTS_INL_H_
#endif

#include <cstdint>
#include <cstring>

#include <hwy/highway.h>

HWY_BEFORE_NAMESPACE();
namespace na_deploy {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

inline float widen(float number) { return number; }
inline float widen(hwy::float16_t number) { return hwy::F32FromF16(number); }
inline float widen(hwy::bfloat16_t number) { return hwy::F32FromBF16(number); }

// to[i * step] = from[i]
template <class D, typename T>
HWY_INLINE void load_row(D d, const T* HWY_RESTRICT from, int64_t count, float* HWY_RESTRICT to) {
  const auto lanes = static_cast<int64_t>(hn::Lanes(d));
  int64_t i = 0;
  if constexpr (sizeof(T) == sizeof(float)) {
    for (; i + lanes <= count; i += lanes) hn::StoreU(hn::LoadU(d, from + i), d, to + i);
  } else {
    const hn::Rebind<T, D> narrow;
    for (; i + lanes <= count; i += lanes) hn::StoreU(hn::PromoteTo(d, hn::LoadU(narrow, from + i)), d, to + i);
  }
  for (; i < count; ++i) to[i] = widen(from[i]);
}

template <class D>
HWY_INLINE void store_row(D, const float* HWY_RESTRICT from, int64_t count, float* HWY_RESTRICT to) {
  std::memcpy(to, from, static_cast<size_t>(count) * sizeof(float));
}

template <class D>
HWY_INLINE void store_row(D d, const float* HWY_RESTRICT from, int64_t count, hwy::float16_t* HWY_RESTRICT to) {
  const auto lanes = static_cast<int64_t>(hn::Lanes(d));
  const hn::Rebind<hwy::float16_t, D> narrow;
  int64_t i = 0;
  for (; i + lanes <= count; i += lanes) hn::StoreU(hn::DemoteTo(narrow, hn::LoadU(d, from + i)), narrow, to + i);
  for (; i < count; ++i) to[i] = hwy::F16FromF32(from[i]);
}

// Rounds to the nearest, ties to even, on every version of Highway.
template <class D>
HWY_INLINE void store_row(D, const float* HWY_RESTRICT from, int64_t count, hwy::bfloat16_t* HWY_RESTRICT to) {
  for (int64_t i = 0; i < count; ++i) {
    uint32_t bits;
    std::memcpy(&bits, from + i, sizeof bits);
    const bool is_nan = (bits & 0x7fffffffU) > 0x7f800000U;
    const uint32_t rounded = bits + 0x7fffU + ((bits >> 16) & 1U);
    const auto narrow = static_cast<uint16_t>(is_nan ? (bits >> 16) | 0x40U : rounded >> 16);
    std::memcpy(to + i, &narrow, sizeof narrow);
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace na_deploy
HWY_AFTER_NAMESPACE();

#endif
