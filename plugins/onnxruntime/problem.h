// One call's tensors and sizes, read from a kernel context and checked against each other.
#pragma once

#include <cstdint>

#include "api.h"
#include "attributes.h"
#include "form.h"

namespace na_deploy::ort {

// Sizes in elements. `length` has one entry per spatial axis.
struct Problem {
  int64_t batch = 0;
  std::vector<int64_t> length;
  int64_t heads = 0;
  int64_t key_heads = 0;
  int64_t head_dim = 0;
  int64_t value_dim = 0;
  int64_t additional = 0;  // M, 0 without additional keys

  const void* query = nullptr;  // (B, *X, H, D), or the packed tensor (B, *X, 3, H, D)
  const void* key = nullptr;    // null where packed
  const void* value = nullptr;  // null where packed
  const void* rel_pos_bias = nullptr;
  const void* additional_key = nullptr;
  const void* additional_value = nullptr;
  const void* padding = nullptr;  // only where packed

  // (B, *X, H), followed by Dv in the first output's case.
  std::vector<int64_t> output_shape(bool with_value_dim) const;
};

// Reads the inputs. Throws InvalidModel where their shapes do not fit the attributes or each other.
Problem read_problem(Form form, const Attributes& attributes, const OrtKernelContext* context);

}  // namespace na_deploy::ort
