// Single numbers of any type, for code that no instruction set is chosen for.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#include <hwy/base.h>

#include "na_params.h"

namespace na_deploy::cpu {

// Returns number `index` of a tensor of the given type.
inline float number_at(const void* tensor, int32_t dtype, int64_t index) {
  switch (dtype) {
    case NA_FLOAT16:
      return hwy::F32FromF16(static_cast<const hwy::float16_t*>(tensor)[index]);
    case NA_BFLOAT16:
      return hwy::F32FromBF16(static_cast<const hwy::bfloat16_t*>(tensor)[index]);
    default:
      return static_cast<const float*>(tensor)[index];
  }
}

// Returns the bits of the nearest bfloat16, the even one of two. Versions of Highway round differently.
inline uint16_t bfloat_bits(float number) {
  uint32_t bits;
  std::memcpy(&bits, &number, sizeof bits);
  const bool is_nan = (bits & 0x7fffffffU) > 0x7f800000U;
  const uint32_t rounded = bits + 0x7fffU + ((bits >> 16) & 1U);
  return static_cast<uint16_t>(is_nan ? (bits >> 16) | 0x40U : rounded >> 16);
}

// Sets number `index` of a tensor of the given type.
inline void set_number(void* tensor, int32_t dtype, int64_t index, float number) {
  switch (dtype) {
    case NA_FLOAT16:
      static_cast<hwy::float16_t*>(tensor)[index] = hwy::F16FromF32(number);
      break;
    case NA_BFLOAT16:
      static_cast<uint16_t*>(tensor)[index] = bfloat_bits(number);
      break;
    default:
      static_cast<float*>(tensor)[index] = number;
  }
}

}  // namespace na_deploy::cpu
