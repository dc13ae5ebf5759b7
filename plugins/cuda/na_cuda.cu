// The C interface's launch, and the plain kernel for every type.
#include <string>

#include "launch.cuh"

namespace na_deploy::cuda {
namespace {

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
  int32_t hopper(const CudaProblem& problem, int32_t tactic) const {
#ifdef NA_DEPLOY_HOPPER
    return launch_hopper<T, kDim>(problem, tactic, stream);
#else
    return cudaErrorInvalidValue;  // device_is_hopper() has said that it cannot be
#endif
  }
};

}  // namespace

#define NA_EXTERN(type, dim) \
  extern template int32_t launch_tile<type, dim>(const CudaProblem&, int32_t, na_cuda_stream);
NA_TILE_UNITS(NA_EXTERN)
#undef NA_EXTERN
#ifdef NA_DEPLOY_HOPPER
#define NA_EXTERN(type, dim) \
  extern template int32_t launch_hopper<type, dim>(const CudaProblem&, int32_t, na_cuda_stream);
NA_HOPPER_UNITS(NA_EXTERN)
#undef NA_EXTERN
#endif

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
  return na_deploy::cuda::choose(na_deploy::cuda::Launcher{stream}, *params, tactic);
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
