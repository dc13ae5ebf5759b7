// The attributes of a node, read once when its kernel is created.
#pragma once

#include <cstdint>
#include <vector>

#include "api.h"

namespace na_deploy::ort {

// One value per spatial axis; what a node leaves out has its default. Sizes fit 31 bits, strides
// lie between 1 and kernel_size; whether windows fit the map is known when the node runs.
struct Attributes {
  std::vector<int64_t> kernel_size;
  std::vector<int64_t> dilation;
  std::vector<int64_t> stride;
  std::vector<int64_t> is_causal;
  float scale = 0.0F;  // 0: head_dim ** -0.5

  int rank() const { return static_cast<int>(kernel_size.size()); }
};

// Throws InvalidModel where an attribute is missing, of another type, out of range, or not given for every axis.
Attributes read_attributes(const OrtKernelInfo* info);

}  // namespace na_deploy::ort
