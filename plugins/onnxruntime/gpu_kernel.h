// One node of a session on an NVIDIA GPU: one launch on ONNX Runtime's stream.
#pragma once

#include <cstdint>
#include <mutex>

#include "na_params.h"
#include "node.h"
#include "ort_api.h"

namespace na_deploy::ort {

// The default tactic of the last sizes seen. Safe to use from several threads at once.
class TacticCache {
 public:
  int32_t get(const na_params& params);

 private:
  std::mutex mutex_;
  na_params sizes_{};
  int32_t tactic_ = 0;
};

// The kernel of one node. Immutable but for the tactic it keeps. Tries the GPU once in a process, when a session makes
// its first node. Allocates nothing on the device and does not wait for it, so that calls can be captured into CUDA
// graphs.
//
// A constant bias of zeros is added like any other: constants of a GPU's nodes lie in its memory, which the host must
// not read.
class GpuKernel {
 public:
  GpuKernel(Node node, const OrtKernelInfo* info);

  OrtStatusPtr ComputeV2(OrtKernelContext* context) const noexcept;

 private:
  void run(OrtKernelContext* context) const;

  Node node_;
  mutable TacticCache tactics_;
};

}  // namespace na_deploy::ort
