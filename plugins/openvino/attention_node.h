// One attention node in OpenVINO, over the CPU kernels: shapes of its outputs and its calls, which run on the calling
// thread's TBB arena. Inside an operator's evaluate() that is the arena of OpenVINO's stream, so its numbers of threads
// and streams hold; no threads are started here.
#pragma once

#include <stdexcept>
#include <vector>

#include "na_params.h"
#include "operator.h"
#include "plan_cache.h"

namespace na_deploy::openvino {

// Attributes or shapes that do not fit, in one sentence.
struct InvalidNode : std::runtime_error {
  using std::runtime_error::runtime_error;
};

// The tensors of one call. Inputs stand in the operator's order.
struct Tensors {
  na_dtype dtype = NA_FLOAT32;   // that of every tensor but lse and, if it is wide, the bias
  bool bias_is_float32 = false;  // whatever dtype is
  bool constant_bias = false;    // the bias is a constant of the model, and stays in its memory
  Input inputs[kMostInputs];
  void* output = nullptr;
  float* lse = nullptr;  // null where nobody asks for it
};

// Immutable but for the plans it keeps: calls may come from several threads at once.
class AttentionNode {
 public:
  // Throws InvalidNode.
  AttentionNode(OperatorKind kind, const AttributeLists& attributes);

  // Returns the sizes of the output, or without channels those of lse; sizes not known yet are -1. Throws InvalidNode.
  std::vector<int64_t> output_sizes(const Input (&inputs)[kMostInputs], bool with_channels) const;

  // Throws InvalidNode or std::bad_alloc.
  void run(const Tensors& tensors);

 private:
  na_params attributes_{};
  cpu::PlanCache plans_;
};

}  // namespace na_deploy::openvino
