// One node of a session on the CPU: how a call becomes tasks on ONNX Runtime's threads.
#pragma once

#include "node.h"
#include "ort_api.h"
#include "plan_cache.h"

namespace na_deploy::ort {

// Whether the model fixes a node's bias.
enum class BiasKind { kVariable, kConstant, kZero };

// Immutable but for the plan it keeps: ONNX Runtime calls compute from several threads at once.
class CpuKernel {
 public:
  CpuKernel(Node node, const OrtKernelInfo* info);

  OrtStatusPtr ComputeV2(OrtKernelContext* context) const noexcept;

 private:
  void run(OrtKernelContext* context) const;

  Node node_;
  BiasKind bias_;
  mutable PlanCache plans_;
};

}  // namespace na_deploy::ort
