// From a tactic's number to a kernel, for one type and width at a time: each is compiled in a unit of its own.
#pragma once

#include <cstdint>

#include "device.h"
#include "na_cuda.h"
#include "problem.h"
#include "tactics.h"

namespace na_deploy {

// Launches the plain kernel. Returns a cudaError_t.
template <typename T>
int32_t launch_plain(const CudaProblem& problem, na_cuda_stream stream);

// Launches a tile kernel. Returns a cudaError_t.
template <typename T, int kDim>
int32_t launch_tile(const CudaProblem& problem, int32_t tactic, na_cuda_stream stream);

// Calls `launcher.template tile<T, kDim>(…)` or `launcher.template plain<T>(…)` for a problem.
template <typename T, typename Launcher>
int32_t choose_dim(const Launcher& launcher, const na_params& p, int32_t tactic) {
  const CudaProblem problem = make_cuda_problem(p, static_cast<int>(sizeof(T)));
  if (tactic == kPlainTactic) return launcher.template plain<T>(problem);
  switch (tile_dim(p.head_dim, p.value_dim)) {
    case 16:
      return launcher.template tile<T, 16>(problem, tactic);
    case 32:
      return launcher.template tile<T, 32>(problem, tactic);
    case 64:
      return launcher.template tile<T, 64>(problem, tactic);
    default:
      return launcher.template tile<T, 128>(problem, tactic);
  }
}

template <typename Launcher>
int32_t choose(const Launcher& launcher, const na_params& p, int32_t tactic) {
  // A tactic chosen for other sizes may meet a map that is too small for it.
  if (tactic == 0 || reaches_behind(p)) na_cuda_tactics(&p, &tactic, 1);
  switch (p.dtype) {
    case NA_FLOAT32:
      return launcher.template plain<float>(make_cuda_problem(p, sizeof(float)));
    case NA_FLOAT16:
      return choose_dim<dev::Half>(launcher, p, tactic);
    default:
      return choose_dim<dev::Bfloat>(launcher, p, tactic);
  }
}

}  // namespace na_deploy
