// Device memory, streams and graphs of programs that check results on a device. What fails throws a sentence.
#pragma once

#include <cuda_runtime_api.h>

#include <algorithm>
#include <cstddef>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

namespace na_deploy::trt_tests {

constexpr size_t kGuard = 256;              // bytes before and after each tensor that nobody may write
constexpr unsigned char kUnwritten = 0xFF;  // makes every unwritten number NaN

inline void expect(bool condition, const std::string& otherwise) {
  if (!condition) throw std::runtime_error(otherwise);
}

inline void expect(cudaError_t error, const char* call) {
  expect(error == cudaSuccess, std::string(call) + " answers " + cudaGetErrorString(error));
}

struct Release {
  void operator()(void* memory) const { cudaFree(memory); }
  void operator()(cudaStream_t stream) const { cudaStreamDestroy(stream); }
  void operator()(cudaGraph_t graph) const { cudaGraphDestroy(graph); }
  void operator()(cudaGraphExec_t graph) const { cudaGraphExecDestroy(graph); }
};
template <typename T>
using Owned = std::unique_ptr<T, Release>;

inline Owned<CUstream_st> new_stream() {
  cudaStream_t stream = nullptr;
  expect(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking), "cudaStreamCreateWithFlags");
  return Owned<CUstream_st>(stream);
}

// A tensor in device memory, between guards.
class DeviceTensor {
 public:
  explicit DeviceTensor(size_t bytes) : bytes_(bytes) {
    void* memory = nullptr;
    expect(cudaMalloc(&memory, bytes + 2 * kGuard), "cudaMalloc");
    memory_.reset(memory);
  }

  unsigned char* address() const { return static_cast<unsigned char*>(memory_.get()) + kGuard; }

  void clear(cudaStream_t stream) const {
    expect(cudaMemsetAsync(memory_.get(), kUnwritten, bytes_ + 2 * kGuard, stream), "cudaMemsetAsync");
  }

  void upload(const std::vector<char>& content, cudaStream_t stream) const {
    expect(cudaMemcpyAsync(address(), content.data(), bytes_, cudaMemcpyHostToDevice, stream), "cudaMemcpyAsync");
  }

  // Returns the tensor's bytes, once the stream has done what it was given before.
  std::vector<char> download(cudaStream_t stream) const {
    std::vector<char> found(bytes_ + 2 * kGuard);
    expect(cudaMemcpyAsync(found.data(), memory_.get(), found.size(), cudaMemcpyDeviceToHost, stream),
           "cudaMemcpyAsync");
    expect(cudaStreamSynchronize(stream), "cudaStreamSynchronize");
    const auto untouched = [](char byte) { return static_cast<unsigned char>(byte) == kUnwritten; };
    const auto inside = found.begin() + kGuard;
    const auto end = inside + static_cast<std::ptrdiff_t>(bytes_);
    expect(std::all_of(found.begin(), inside, untouched) && std::all_of(end, found.end(), untouched),
           "something was written beside an output");
    return {inside, end};
  }

 private:
  size_t bytes_;
  Owned<void> memory_;
};

}  // namespace na_deploy::trt_tests
