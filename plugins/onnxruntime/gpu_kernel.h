// One node of a session on an NVIDIA GPU: one launch on ONNX Runtime's stream.
#pragma once

#include "api.h"
#include "na_params.h"
#include "node.h"

namespace na_deploy::ort {

// Immutable. Allocates nothing on the device and does not wait for it, so that calls can be captured into CUDA graphs.
//
// A constant bias of zeros is added like any other: constants of a GPU's nodes lie in its memory, where the host must
// not look.
class GpuKernel {
 public:
  GpuKernel(Node node, const OrtKernelInfo* info);

  OrtStatusPtr ComputeV2(OrtKernelContext* context) const noexcept;

 private:
  void run(OrtKernelContext* context) const;

  Node node_;
};

}  // namespace na_deploy::ort
