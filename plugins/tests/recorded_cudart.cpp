// A CUDA runtime that launches nothing and tells a test each requested launch: the kernel, its grid and where its
// parameters are. Linked to one unit of kernels, so that tests execute machine code with the host's own parameters.
//
// A tensor that is encoded for the tensor memory accelerator is written down in plain words, which
// tests/support/sass/hopper.py reads.
#include <cuda.h>
#include <cuda_runtime_api.h>

#include <cstdint>
#include <cstring>
#include <map>
#include <string>

namespace {

// Receiver of a launch: the kernel's name, blocks, threads of a block, bytes of shared memory, and the parameters'
// addresses.
using Told = void (*)(const char* kernel, uint32_t blocks, uint32_t threads, uint64_t shared, void** parameters);

Told& listener() {
  static Told told = nullptr;
  return told;
}

std::map<const void*, std::string>& kernels() {
  static std::map<const void*, std::string> names;
  return names;
}

struct Configuration {
  dim3 grid;
  dim3 block;
  size_t shared;
  cudaStream_t stream;
};
Configuration pushed;

// Content of a CUtensorMap's 128 bytes, as recorded here.
struct EncodedTensor {
  uint64_t base;
  uint64_t size[5];
  uint64_t bytes[4];
  uint32_t box[5];
  uint32_t axes;
};
static_assert(sizeof(EncodedTensor) <= sizeof(CUtensorMap), "the words fit where the driver's go");

CUresult encode_tiled(CUtensorMap* map, CUtensorMapDataType /*type*/, cuuint32_t axes, void* base,
                      const cuuint64_t* size, const cuuint64_t* bytes, const cuuint32_t* box,
                      const cuuint32_t* /*steps*/, CUtensorMapInterleave interleave, CUtensorMapSwizzle swizzle,
                      CUtensorMapL2promotion /*promotion*/, CUtensorMapFloatOOBfill fill) {
  if (interleave != CU_TENSOR_MAP_INTERLEAVE_NONE || swizzle != CU_TENSOR_MAP_SWIZZLE_128B ||
      fill != CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE || axes > 5) {
    return CUDA_ERROR_INVALID_VALUE;
  }
  EncodedTensor words{};
  words.base = reinterpret_cast<uint64_t>(base);
  words.axes = axes;
  for (cuuint32_t a = 0; a < axes; ++a) {
    words.size[a] = size[a];
    words.box[a] = box[a];
    if (a > 0) words.bytes[a - 1] = bytes[a - 1];
  }
  std::memset(map, 0, sizeof *map);
  std::memcpy(map, &words, sizeof words);
  return CUDA_SUCCESS;
}

}  // namespace

extern "C" {

__attribute__((visibility("default"))) void na_record_launches(Told told) { listener() = told; }

void** __cudaRegisterFatBinary(void* /*binary*/) {
  static void* handle = nullptr;
  return &handle;
}
void __cudaRegisterFatBinaryEnd(void** /*handle*/) {}
void __cudaUnregisterFatBinary(void** /*handle*/) {}
void __cudaRegisterFunction(void** /*handle*/, const char* host, char* /*device*/, const char* name, int /*limit*/,
                            uint3* /*thread*/, uint3* /*block*/, dim3* /*threads*/, dim3* /*blocks*/, int* /*size*/) {
  kernels()[host] = name;
}
cudaError_t __cudaGetKernel(cudaKernel_t* kernel, const void* host) {
  *kernel = reinterpret_cast<cudaKernel_t>(const_cast<void*>(host));
  return cudaSuccess;
}
unsigned __cudaPushCallConfiguration(dim3 grid, dim3 block, size_t shared, cudaStream_t stream) {
  pushed = {grid, block, shared, stream};
  return 0;
}
cudaError_t __cudaPopCallConfiguration(dim3* grid, dim3* block, size_t* shared, void* stream) {
  *grid = pushed.grid;
  *block = pushed.block;
  *shared = pushed.shared;
  *static_cast<cudaStream_t*>(stream) = pushed.stream;
  return cudaSuccess;
}
cudaError_t __cudaLaunchKernel(cudaKernel_t kernel, dim3 grid, dim3 block, void** parameters, size_t shared,
                               cudaStream_t /*stream*/) {
  const auto found = kernels().find(reinterpret_cast<const void*>(kernel));
  if (found == kernels().end() || listener() == nullptr) return cudaErrorInvalidDeviceFunction;
  if (grid.y * grid.z != 1 || block.y * block.z != 1) return cudaErrorInvalidConfiguration;
  listener()(found->second.c_str(), grid.x, block.x, shared, parameters);
  return cudaSuccess;
}
cudaError_t cudaLaunchKernel(const void* host, dim3 grid, dim3 block, void** parameters, size_t shared,
                             cudaStream_t stream) {
  return __cudaLaunchKernel(reinterpret_cast<cudaKernel_t>(const_cast<void*>(host)), grid, block, parameters, shared,
                            stream);
}

cudaError_t cudaFuncSetAttribute(const void* /*kernel*/, cudaFuncAttribute /*attribute*/, int /*value*/) {
  return cudaSuccess;
}
cudaError_t cudaGetLastError() { return cudaSuccess; }
cudaError_t cudaGetDevice(int* device) {
  *device = 0;
  return cudaSuccess;
}
// Returns the attributes of an H100.
cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int /*device*/) {
  switch (attribute) {
    case cudaDevAttrComputeCapabilityMajor:
      *value = 9;
      return cudaSuccess;
    case cudaDevAttrComputeCapabilityMinor:
      *value = 0;
      return cudaSuccess;
    case cudaDevAttrMultiProcessorCount:
      *value = 132;
      return cudaSuccess;
    default:
      return cudaErrorInvalidValue;
  }
}
cudaError_t cudaGetDriverEntryPointByVersion(const char* name, void** function, unsigned /*version*/,
                                             unsigned long long /*flags*/, cudaDriverEntryPointQueryResult* result) {
  const bool known = std::strcmp(name, "cuTensorMapEncodeTiled") == 0;
  *function = known ? reinterpret_cast<void*>(&encode_tiled) : nullptr;
  *result = known ? cudaDriverEntryPointSuccess : cudaDriverEntryPointSymbolNotFound;
  return cudaSuccess;
}

}  // extern "C"
