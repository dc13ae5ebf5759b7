// From a node, as a runtime describes it, to na_params: its attributes once, its inputs with every call. Everything
// that shapes and attributes must satisfy is checked here and in na_check, for every runtime and processor.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "na_params.h"
#include "operator_kind.h"

namespace na_deploy {

// A node's attributes as it states them. A list that the node leaves out is empty.
struct AttributeLists {
  std::vector<int64_t> kernel_size;
  std::vector<int64_t> dilation;
  std::vector<int64_t> stride;
  std::vector<int64_t> is_causal;
  float scale = 0.0F;  // 0: head_dim ** -0.5
};

// Sets rank, attributes and the kind of operator in `params`; a list of one value stands for every axis. Returns an
// empty string, or a sentence about the attribute that is missing, out of range or not given for every axis.
std::string set_attributes(OperatorKind kind, const AttributeLists& lists, na_params& params);

constexpr int kMostInputs = 6;
constexpr int kMostSizes = 8;

// One input of a node. `size` holds the first kMostSizes of `rank` sizes, -1 for those not known yet.
struct Input {
  int rank = -1;  // -1: the node leaves it out
  int64_t size[kMostSizes] = {};
  const void* data = nullptr;

  bool is_given() const { return rank >= 0; }
};

// Sets sizes and pointers to tensors in `params`, which holds the attributes, from the inputs in the operator's order.
// Returns an empty string, or a sentence about the input whose shape does not fit; sizes not known yet fit any.
std::string set_inputs(const Input (&inputs)[kMostInputs], na_params& params);

// Sizes of the output, (B, *X, H, Dv), or without channels those of lse, (B, *X, H).
std::vector<int64_t> output_shape(const na_params& params, bool with_channels);

// Whether two calls of one node have the same sizes.
bool same_sizes(const na_params& a, const na_params& b);

}  // namespace na_deploy
