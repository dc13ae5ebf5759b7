// A CUDA runtime that pretends to have one GPU, for ONNX Runtime's real CUDA provider in tests: streams are numbers,
// and device memory is host memory that only copies and the emulated kernels may touch. It launches no kernel. Its
// graphs are pretended_graphs.cpp's.
//
// Functions that are missing here are added by tests/support/pretended_cuda.py; they do nothing and succeed.
#include <cuda_runtime_api.h>
#include <sys/mman.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <mutex>

// pretended_graphs.cpp's.
bool na_test_capture(cudaStream_t stream, const std::function<void()>& work);
bool na_test_forbidden();

namespace {

constexpr size_t kBytes = size_t{512} << 20;
constexpr size_t kAlignment = 256;

// Hands out memory and never takes it back: processes of tests are short.
class DeviceMemory {
 public:
  DeviceMemory() : base_(static_cast<unsigned char*>(mmap(nullptr, kBytes, PROT_NONE, kFlags, -1, 0))) {
    if (base_ == MAP_FAILED) std::abort();
  }

  void* take(size_t bytes) {
    const std::lock_guard<std::mutex> lock(mutex_);
    const size_t rounded = (bytes + kAlignment - 1) / kAlignment * kAlignment;
    if (used_ + rounded > kBytes) return nullptr;
    used_ += rounded;
    return base_ + used_ - rounded;
  }

  bool holds(const void* at) const { return at >= base_ && at < base_ + kBytes; }

  // Opens or closes the memory, which may be touched while anybody has it open.
  void open(bool wanted) {
    const std::lock_guard<std::mutex> lock(mutex_);
    const int before = users_;
    users_ += wanted ? 1 : -1;
    if (before != 0 && users_ != 0) return;
    if (mprotect(base_, kBytes, users_ != 0 ? PROT_READ | PROT_WRITE : PROT_NONE) != 0) std::abort();
  }

 private:
  static constexpr int kFlags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE;

  std::mutex mutex_;
  unsigned char* base_;
  size_t used_ = 0;
  int users_ = 0;
};

DeviceMemory& device() {
  static DeviceMemory memory;
  return memory;
}

[[noreturn]] void fail(const char* what) {
  std::fprintf(stderr, "pretended CUDA: %s\n", what);
  std::abort();
}

cudaError_t copy(void* to, const void* from, size_t bytes) {
  device().open(true);
  std::memcpy(to, from, bytes);
  device().open(false);
  return cudaSuccess;
}

cudaError_t fill(void* at, int value, size_t bytes) {
  device().open(true);
  std::memset(at, value, bytes);
  device().open(false);
  return cudaSuccess;
}

void expect_place(const void* at, bool on_device) {
  if (device().holds(at) != on_device) fail("a copy's direction does not fit its addresses");
}

}  // namespace

extern "C" {

// Opens or closes device memory; the emulated kernels call this around a launch.
void na_test_device_memory(int32_t open) { device().open(open != 0); }

cudaError_t cudaGetDeviceCount(int* count) {
  *count = 1;
  return cudaSuccess;
}

cudaError_t cudaGetDevice(int* number) {
  *number = 0;
  return cudaSuccess;
}

cudaError_t cudaGetDeviceProperties(cudaDeviceProp* properties, int /*number*/) {
  *properties = {};
  std::strcpy(properties->name, "pretended");
  properties->major = 9;
  properties->totalGlobalMem = kBytes;
  properties->multiProcessorCount = 8;
  properties->maxThreadsPerBlock = 1024;
  properties->maxThreadsPerMultiProcessor = 2048;
  properties->warpSize = 32;
  properties->sharedMemPerBlock = 48 * 1024;
  return cudaSuccess;
}

cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int /*number*/) {
  *value = attribute == cudaDevAttrComputeCapabilityMajor ? 9 : attribute == cudaDevAttrMultiProcessorCount ? 8 : 0;
  return cudaSuccess;
}

cudaError_t cudaRuntimeGetVersion(int* version) {
  *version = CUDART_VERSION;
  return cudaSuccess;
}

cudaError_t cudaDriverGetVersion(int* version) { return cudaRuntimeGetVersion(version); }

cudaError_t cudaMemGetInfo(size_t* available, size_t* total) {
  *available = *total = kBytes;
  return cudaSuccess;
}

cudaError_t cudaMalloc(void** at, size_t bytes) {
  if (na_test_forbidden()) return cudaErrorStreamCaptureUnsupported;
  *at = device().take(bytes);
  return *at != nullptr ? cudaSuccess : cudaErrorMemoryAllocation;
}

cudaError_t cudaHostAlloc(void** at, size_t bytes, unsigned /*flags*/) {
  return posix_memalign(at, kAlignment, bytes) == 0 ? cudaSuccess : cudaErrorMemoryAllocation;
}

cudaError_t cudaMallocHost(void** at, size_t bytes) { return cudaHostAlloc(at, bytes, 0); }

cudaError_t cudaFreeHost(void* at) {
  std::free(at);
  return cudaSuccess;
}

cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t bytes, cudaMemcpyKind kind, cudaStream_t stream) {
  if (bytes == 0) return cudaSuccess;
  expect_place(to, kind == cudaMemcpyHostToDevice || kind == cudaMemcpyDeviceToDevice);
  expect_place(from, kind == cudaMemcpyDeviceToHost || kind == cudaMemcpyDeviceToDevice);
  if (na_test_capture(stream, [=] { copy(to, from, bytes); })) return cudaSuccess;
  return copy(to, from, bytes);
}

cudaError_t cudaMemcpy(void* to, const void* from, size_t bytes, cudaMemcpyKind kind) {
  return na_test_forbidden() ? cudaErrorStreamCaptureUnsupported : cudaMemcpyAsync(to, from, bytes, kind, nullptr);
}

cudaError_t cudaMemsetAsync(void* at, int value, size_t bytes, cudaStream_t stream) {
  if (na_test_capture(stream, [=] { fill(at, value, bytes); })) return cudaSuccess;
  return fill(at, value, bytes);
}

cudaError_t cudaMemset(void* at, int value, size_t bytes) {
  return na_test_forbidden() ? cudaErrorStreamCaptureUnsupported : cudaMemsetAsync(at, value, bytes, nullptr);
}

cudaError_t cudaStreamCreateWithFlags(cudaStream_t* stream, unsigned /*flags*/) {
  static uintptr_t last = 0x5000;
  *stream = reinterpret_cast<cudaStream_t>(++last);
  return cudaSuccess;
}

cudaError_t cudaEventCreateWithFlags(cudaEvent_t* event, unsigned /*flags*/) {
  *event = reinterpret_cast<cudaEvent_t>(uintptr_t{1});
  return cudaSuccess;
}

const char* cudaGetErrorString(cudaError_t /*error*/) { return "a pretended error"; }

const char* cudaGetErrorName(cudaError_t /*error*/) { return "cudaErrorPretended"; }

cudaError_t cudaLaunchKernel(const void* /*kernel*/, dim3 /*grid*/, dim3 /*block*/, void** /*arguments*/,
                             size_t /*shared*/, cudaStream_t /*stream*/) {
  fail("a kernel of ONNX Runtime's own was launched");
}

void** __cudaRegisterFatBinary(void* /*binary*/) {
  static void* handle = nullptr;
  return &handle;
}

}  // extern "C"
