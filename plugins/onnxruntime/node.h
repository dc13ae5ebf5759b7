// One node of a session: the parts read when its kernel is created, and the parts read with every call.
#pragma once

#include <string>

#include "na_params.h"
#include "operator.h"
#include "ort_api.h"

namespace na_deploy::ort {

struct Node {
  na_params params{};   // kind, type and attributes; the rest is set by each call
  std::string subject;  // "NeighborhoodAttentionQKV node 'levels.0.blocks.0.attn'"
};

// Reads and checks the attributes. Throws InvalidModel where one is missing, of another type or out of range.
na_params read_attributes(OperatorKind kind, ONNXTensorElementDataType type, const OrtKernelInfo* info);

// Returns a call's sizes and inputs beside the node's attributes, checked; outputs are null. Throws InvalidModel where
// they do not fit each other.
na_params read_call(const Node& node, const OrtKernelContext* context);

// Asks ONNX Runtime for the outputs that the node has and sets them. Outputs lie in the same kind of memory as the
// inputs.
void make_outputs(OrtKernelContext* context, na_params& params);

}  // namespace na_deploy::ort
