// rel_pos_bias in the forms that the tiles read, made without SIMD once per head or, for constants, once per model.
#pragma once

#include <cstdint>

#include "plan.h"

namespace na_deploy::cpu {

inline int32_t bias_dtype(const na_params& params) {
  return params.bias_is_float32 != 0 ? NA_FLOAT32 : static_cast<na_dtype>(params.dtype);
}

// Writes one head's spread bias (see SpreadBias), times log2(e).
void spread_bias(const Plan& plan, const na_params& params, int64_t head, float* spread);

// Returns one head's rel_pos_bias in float32, written to `buffer` unless it is float32 already.
const float* widened_bias(const Plan& plan, const na_params& params, int64_t head, float* buffer);

}  // namespace na_deploy::cpu
