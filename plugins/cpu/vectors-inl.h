// Vector types shared by both kernels, and masks of lanes. Per target: included once for each instruction set.
#if defined(NA_DEPLOY_CPU_VECTORS_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef NA_DEPLOY_CPU_VECTORS_INL_H_
#undef NA_DEPLOY_CPU_VECTORS_INL_H_
#else
#define NA_DEPLOY_CPU_VECTORS_INL_H_
#endif

#include <cstdint>
#include <cstring>

#include <hwy/highway.h>

#include "plan.h"

HWY_BEFORE_NAMESPACE();
namespace na_deploy::cpu {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

using FloatTag = hn::CappedTag<float, kMaxVector>;
using Float = hn::Vec<FloatTag>;
using IntTag = hn::RebindToSigned<FloatTag>;
using Int = hn::Vec<IntTag>;
constexpr int64_t kVector = hn::MaxLanes(FloatTag());

constexpr float kMasked = -1e30F;  // score of a key that is not seen; finite, so that differences are never NaN
constexpr float kLog2E = 1.44269504088896341F;
constexpr float kLn2 = 0.69314718055994531F;

// The lanes whose bit is set, from the lowest on.
HWY_INLINE hn::Mask<FloatTag> lanes_of(uint64_t bits) {
  uint8_t bytes[8];
  std::memcpy(bytes, &bits, sizeof bits);
  return hn::LoadMaskBits(FloatTag(), bytes);
}

}  // namespace HWY_NAMESPACE
}  // namespace na_deploy::cpu
HWY_AFTER_NAMESPACE();

#endif
