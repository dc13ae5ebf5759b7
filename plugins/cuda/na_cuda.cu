// The C interface's launch, and the plain kernel for every type.
#include "launch.cuh"

namespace na_deploy {
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
};

}  // namespace

#define NA_EXTERN(type, dim) \
  extern template int32_t launch_tile<type, dim>(const CudaProblem&, int32_t, na_cuda_stream);
NA_TILE_UNITS(NA_EXTERN)
#undef NA_EXTERN

}  // namespace na_deploy

extern "C" int32_t na_forward(const na_params* params, int32_t tactic, na_cuda_stream stream) {
  return na_deploy::choose(na_deploy::Launcher{stream}, *params, tactic);
}
