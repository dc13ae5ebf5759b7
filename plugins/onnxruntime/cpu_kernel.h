// One node of a session on the CPU, whose calls become tasks on ONNX Runtime's threads.
#pragma once

#include "node.h"
#include "ort_api.h"
#include "plan_cache.h"

namespace na_deploy::ort {

// The kernel of one node. Immutable but for the plans it keeps: ONNX Runtime calls compute from several threads at
// once.
class CpuKernel {
 public:
  CpuKernel(Node node, const OrtKernelInfo* info);

  OrtStatusPtr ComputeV2(OrtKernelContext* context) const noexcept;

 private:
  void run(OrtKernelContext* context) const;

  Node node_;
  bool constant_bias_;
  mutable cpu::PlanCache plans_;
};

}  // namespace na_deploy::ort
