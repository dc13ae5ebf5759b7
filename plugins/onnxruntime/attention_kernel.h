// One node of a session: its attributes, and how a call becomes tasks on ONNX Runtime's threads.
#pragma once

#include <string>

#include "api.h"
#include "attributes.h"
#include "form.h"
#include "plan_cache.h"

namespace na_deploy {

// Whether the model fixes a node's bias.
enum class BiasKind { kVariable, kConstant, kZero };

// Immutable but for the plan it keeps: ONNX Runtime calls compute from several threads at once.
class AttentionKernel {
 public:
  static OrtStatusPtr create(Form form, ONNXTensorElementDataType type, const OrtKernelInfo* info,
                             void** kernel) noexcept;

  OrtStatusPtr ComputeV2(OrtKernelContext* context) const noexcept;

 private:
  AttentionKernel(Form form, ONNXTensorElementDataType type, Attributes attributes, std::string subject, BiasKind bias);

  void run(OrtKernelContext* context) const;

  Form form_;
  ONNXTensorElementDataType type_;
  Attributes attributes_;
  std::string subject_;  // "NeighborhoodAttentionQKV node 'levels.0.blocks.0.attn'"
  BiasKind bias_;
  mutable PlanCache plans_;
};

}  // namespace na_deploy
