// Graphs of the pretended CUDA runtime: a stream that is captured keeps the launches of emulated kernels, and a graph
// repeats them. With pretended_cudart.cpp this is all that trt_enqueue calls.
#include <cuda_runtime_api.h>

#include <functional>
#include <map>
#include <memory>
#include <vector>

namespace {

using Work = std::vector<std::function<void()>>;

// Work of streams that are captured now.
std::map<cudaStream_t, std::unique_ptr<Work>>& captured() {
  static std::map<cudaStream_t, std::unique_ptr<Work>> streams;
  return streams;
}

}  // namespace

// Keeps a launch if the stream is captured; returns whether it did.
bool na_test_capture(cudaStream_t stream, const std::function<void()>& launch) {
  const auto found = captured().find(stream);
  if (found == captured().end()) return false;
  found->second->push_back(launch);
  return true;
}

extern "C" {

cudaError_t cudaStreamBeginCapture(cudaStream_t stream, cudaStreamCaptureMode /*mode*/) {
  const bool is_new = captured().emplace(stream, std::make_unique<Work>()).second;
  return is_new ? cudaSuccess : cudaErrorIllegalState;
}

cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t* graph) {
  const auto found = captured().find(stream);
  if (found == captured().end()) return cudaErrorIllegalState;
  *graph = reinterpret_cast<cudaGraph_t>(found->second.release());
  captured().erase(found);
  return cudaSuccess;
}

cudaError_t cudaGraphInstantiate(cudaGraphExec_t* executable, cudaGraph_t graph, unsigned long long /*flags*/) {
  *executable = reinterpret_cast<cudaGraphExec_t>(std::make_unique<Work>(*reinterpret_cast<Work*>(graph)).release());
  return cudaSuccess;
}

cudaError_t cudaGraphLaunch(cudaGraphExec_t executable, cudaStream_t /*stream*/) {
  for (const auto& launch : *reinterpret_cast<Work*>(executable)) launch();
  return cudaSuccess;
}

cudaError_t cudaGraphDestroy(cudaGraph_t graph) {
  const std::unique_ptr<Work> owned(reinterpret_cast<Work*>(graph));
  return cudaSuccess;
}

cudaError_t cudaGraphExecDestroy(cudaGraphExec_t executable) {
  const std::unique_ptr<Work> owned(reinterpret_cast<Work*>(executable));
  return cudaSuccess;
}

cudaError_t cudaStreamSynchronize(cudaStream_t stream) {
  return captured().count(stream) == 0 ? cudaSuccess : cudaErrorStreamCaptureUnsupported;
}

cudaError_t cudaStreamDestroy(cudaStream_t /*stream*/) { return cudaSuccess; }

cudaError_t cudaFree(void* /*memory*/) { return cudaSuccess; }

cudaError_t cudaGetLastError() { return cudaSuccess; }

}  // extern "C"
