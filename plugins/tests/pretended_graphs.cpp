// Graphs of the pretended CUDA runtime: a stream that is captured keeps the launches of emulated kernels and its
// copies, and a graph repeats them. While one is captured in CUDA's global mode, calls that CUDA refuses then are
// refused.
#include <cuda_runtime_api.h>

#include <atomic>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <vector>

namespace {

using Work = std::vector<std::function<void()>>;

struct Capture {
  cudaStreamCaptureMode mode;
  std::unique_ptr<Work> work;
};

// Streams that are captured now.
std::map<cudaStream_t, Capture>& captured() {
  static std::map<cudaStream_t, Capture> streams;
  return streams;
}

std::mutex& guard() {
  static std::mutex mutex;
  return mutex;
}

std::atomic<int32_t> made{0}, launched{0}, destroyed{0};

}  // namespace

// Keeps work if the stream is captured; returns whether it did.
bool na_test_capture(cudaStream_t stream, const std::function<void()>& launch) {
  const std::lock_guard<std::mutex> lock(guard());
  const auto found = captured().find(stream);
  if (found == captured().end()) return false;
  found->second.work->push_back(launch);
  return true;
}

// Returns whether a capture in the global mode forbids calls that wait or allocate, in every thread.
bool na_test_forbidden() {
  const std::lock_guard<std::mutex> lock(guard());
  for (const auto& [stream, capture] : captured()) {
    if (capture.mode == cudaStreamCaptureModeGlobal) return true;
  }
  return false;
}

extern "C" {

// Writes counts of graphs: made, launched, destroyed.
void na_test_graphs(int32_t* counts) {
  counts[0] = made;
  counts[1] = launched;
  counts[2] = destroyed;
}

cudaError_t cudaStreamBeginCapture(cudaStream_t stream, cudaStreamCaptureMode mode) {
  const std::lock_guard<std::mutex> lock(guard());
  const bool is_new = captured().emplace(stream, Capture{mode, std::make_unique<Work>()}).second;
  return is_new ? cudaSuccess : cudaErrorIllegalState;
}

cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t* graph) {
  const std::lock_guard<std::mutex> lock(guard());
  const auto found = captured().find(stream);
  if (found == captured().end()) return cudaErrorIllegalState;
  *graph = reinterpret_cast<cudaGraph_t>(found->second.work.release());
  captured().erase(found);
  return cudaSuccess;
}

cudaError_t cudaStreamIsCapturing(cudaStream_t stream, cudaStreamCaptureStatus* status) {
  const std::lock_guard<std::mutex> lock(guard());
  *status = captured().count(stream) == 0 ? cudaStreamCaptureStatusNone : cudaStreamCaptureStatusActive;
  return cudaSuccess;
}

cudaError_t cudaGraphInstantiate(cudaGraphExec_t* executable, cudaGraph_t graph, unsigned long long /*flags*/) {
  *executable = reinterpret_cast<cudaGraphExec_t>(std::make_unique<Work>(*reinterpret_cast<Work*>(graph)).release());
  ++made;
  return cudaSuccess;
}

cudaError_t cudaGraphLaunch(cudaGraphExec_t executable, cudaStream_t /*stream*/) {
  for (const auto& launch : *reinterpret_cast<Work*>(executable)) launch();
  ++launched;
  return cudaSuccess;
}

cudaError_t cudaGraphDestroy(cudaGraph_t graph) {
  const std::unique_ptr<Work> owned(reinterpret_cast<Work*>(graph));
  return cudaSuccess;
}

cudaError_t cudaGraphExecDestroy(cudaGraphExec_t executable) {
  const std::unique_ptr<Work> owned(reinterpret_cast<Work*>(executable));
  ++destroyed;
  return cudaSuccess;
}

cudaError_t cudaStreamSynchronize(cudaStream_t stream) {
  const std::lock_guard<std::mutex> lock(guard());
  return captured().count(stream) == 0 ? cudaSuccess : cudaErrorStreamCaptureUnsupported;
}

cudaError_t cudaStreamDestroy(cudaStream_t /*stream*/) { return cudaSuccess; }

cudaError_t cudaFree(void* /*memory*/) { return cudaSuccess; }

cudaError_t cudaGetLastError() { return cudaSuccess; }

}  // extern "C"
