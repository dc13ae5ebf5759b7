// Launches of the C interface, and the plain kernel for every type.
#include <string>

#include "launch.cuh"

namespace na_deploy::cuda {
namespace {

// Computes attention of one query to itself, which must return its value.
int32_t try_device(int32_t device) {
  int before = 0;
  cudaError_t error = cudaGetDevice(&before);
  if (error == cudaSuccess && device >= 0) error = cudaSetDevice(device);
  float* memory = nullptr;
  if (error == cudaSuccess) error = cudaMalloc(&memory, 64 * sizeof(float));
  const float given[3] = {1.0F, 1.0F, 0.5F};
  float found = 0.0F;
  if (error == cudaSuccess) error = cudaMemcpy(memory, given, sizeof given, cudaMemcpyHostToDevice);
  if (error == cudaSuccess) {
    na_params params{};
    params.rank = params.packed = 1;
    params.batch = params.length[0] = params.heads = params.key_heads = params.head_dim = params.value_dim = 1;
    params.kernel_size[0] = params.dilation[0] = params.stride[0] = 1;
    params.query = memory;
    params.output = memory + 32;
    error = static_cast<cudaError_t>(na_launch(&params, kPlainTactic, nullptr));
  }
  if (error == cudaSuccess) error = cudaMemcpy(&found, memory + 32, sizeof found, cudaMemcpyDeviceToHost);
  if (error == cudaSuccess && found != given[2]) error = cudaErrorUnknown;
  if (memory != nullptr) cudaFree(memory);
  if (device >= 0) cudaSetDevice(before);
  return error;
}

struct Launcher {
  na_cuda_stream stream;

  template <typename T>
  int32_t plain(const CudaProblem& problem) const {
    return launch_plain<T>(problem, stream);
  }
  template <typename T, int kDim>
  int32_t tile(const CudaProblem& problem, int32_t tactic) const {
    return launch_tile<T, kDim>(problem, tactic, stream);
  }
  template <typename T, int kDim>
  int32_t onepass(const CudaProblem& problem, const onepass::Plan& plan, const onepass::Device& device) const {
    return launch_onepass<T, kDim>(problem, plan, device, stream);
  }
  template <typename T, int kDim>
  int32_t hopper(const CudaProblem& problem, int32_t tactic) const {
#ifdef NA_DEPLOY_HOPPER
    return launch_hopper<T, kDim>(problem, tactic, stream);
#else
    return cudaErrorInvalidValue;  // unreachable: device_is_hopper() is false
#endif
  }
};

}  // namespace

#define NA_EXTERN(type, dim) \
  extern template int32_t launch_tile<type, dim>(const CudaProblem&, int32_t, na_cuda_stream);
NA_TILE_UNITS(NA_EXTERN)
#undef NA_EXTERN
#define NA_EXTERN(type, dim)                                                                                          \
  extern template int32_t launch_onepass<type, dim>(const CudaProblem&, const onepass::Plan&, const onepass::Device&, \
                                                    na_cuda_stream);
NA_ONEPASS_UNITS(NA_EXTERN)
#undef NA_EXTERN
#ifdef NA_DEPLOY_HOPPER
#define NA_EXTERN(type, dim) \
  extern template int32_t launch_hopper<type, dim>(const CudaProblem&, int32_t, na_cuda_stream);
NA_HOPPER_UNITS(NA_EXTERN)
#undef NA_EXTERN
#endif

// Returns the limits of the present device or, without one, the least of any device from sm_80 on.
onepass::Device present_device() {
  onepass::Device found{32, 99 * 1024, 100 * 1024};
  int device = 0;
  if (cudaGetDevice(&device) == cudaSuccess) {
    cudaDeviceGetAttribute(&found.multiprocessors, cudaDevAttrMultiProcessorCount, device);
    cudaDeviceGetAttribute(&found.block_shared, cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
    cudaDeviceGetAttribute(&found.shared, cudaDevAttrMaxSharedMemoryPerMultiprocessor, device);
  }
  cudaGetLastError();  // else a later launch would report it
  return found;
}

bool device_is_hopper() {
#ifdef NA_DEPLOY_HOPPER
  int device = 0;
  int major = 0;
  int minor = -1;
  const bool known = cudaGetDevice(&device) == cudaSuccess &&
                     cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device) == cudaSuccess &&
                     cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device) == cudaSuccess;
  if (!known) cudaGetLastError();  // else a later launch would report it
  return known && major == 9 && minor == 0;
#else
  return false;
#endif
}

}  // namespace na_deploy::cuda

extern "C" int32_t na_forward(const na_params* params, int32_t tactic, na_cuda_stream stream) {
  const int32_t known = na_deploy::cuda::known_tactic(*params, tactic);
  return known == na_deploy::cuda::kNoTactic ? cudaErrorInvalidValue : na_launch(params, known, stream);
}

extern "C" int32_t na_launch(const na_params* params, int32_t tactic, na_cuda_stream stream) {
  return na_deploy::cuda::choose(na_deploy::cuda::Launcher{stream}, *params, tactic);
}

extern "C" int32_t na_cuda_try(int32_t device) {
  const int32_t error = na_deploy::cuda::try_device(device);
  if (error != cudaSuccess) cudaGetLastError();
  return error;
}

extern "C" const char* na_cuda_error(int32_t error) { return cudaGetErrorString(static_cast<cudaError_t>(error)); }

extern "C" const char* na_cuda_capabilities() {
  static const std::string text = [] {
    std::string made;
    for (const int number : {__CUDA_ARCH_LIST__}) {  // 800, 860 …
      made += (made.empty() ? "" : ", ") + std::to_string(number / 100) + "." + std::to_string(number / 10 % 10);
    }
    return made;
  }();
  return text.c_str();
}
