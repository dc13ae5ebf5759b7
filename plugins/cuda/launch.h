// Choice of a kernel by a tactic's number, type and width. Each type and width is compiled in a unit of its own.
#pragma once

#include <cstdint>

#include "device.h"
#include "na_cuda.h"
#include "onepass/plan.h"
#include "problem.h"
#include "tactics.h"

namespace na_deploy::cuda {

constexpr int64_t kMostBlocks = 0x7FFFFFFF;

// Launches the plain kernel. Returns a cudaError_t.
template <typename T>
int32_t launch_plain(const CudaProblem& problem, na_cuda_stream stream);

// Launches a tile kernel. Returns a cudaError_t.
template <typename T, int kDim>
int32_t launch_tile(const CudaProblem& problem, int32_t tactic, na_cuda_stream stream);

// Launches a kernel for Hopper. Returns a cudaError_t.
template <typename T, int kDim>
int32_t launch_hopper(const CudaProblem& problem, int32_t tactic, na_cuda_stream stream);

// Launches a one-pass kernel as planned for the device. Returns a cudaError_t.
template <typename T, int kDim>
int32_t launch_onepass(const CudaProblem& problem, const onepass::Plan& plan, const onepass::Device& device,
                       na_cuda_stream stream);

// Calls `launcher.template onepass<T, kDim>(…)` with the plan of a tactic that known_tactic() accepted.
template <typename T, typename Launcher>
int32_t choose_onepass(const Launcher& launcher, const na_params& p, const CudaProblem& problem, int32_t tactic) {
  const onepass::Device device = present_device();
  const auto found = onepass::make_plan(p, onepass::tactic_warps(tactic), device);
  if (!found) return launcher.template plain<T>(problem);
  switch (tile_dim(p.head_dim, p.value_dim, 2)) {
    case 16:
      return launcher.template onepass<T, 16>(problem, found->plan, device);
    case 32:
      return launcher.template onepass<T, 32>(problem, found->plan, device);
    default:
      return launcher.template onepass<T, 64>(problem, found->plan, device);
  }
}

// Calls `launcher.template hopper<T, kDim>(…)`, `….tile<T, kDim>(…)` or `….plain<T>(…)` for a problem.
template <typename T, typename Launcher>
int32_t choose_dim(const Launcher& launcher, const na_params& p, int32_t tactic) {
  constexpr int kWidth = static_cast<int>(sizeof(T));
  const CudaProblem problem = make_cuda_problem(p, kWidth);
  if (tactic == kPlainTactic) return launcher.template plain<T>(problem);
  if constexpr (kWidth == 2) {
    if (is_onepass(tactic)) return choose_onepass<T>(launcher, p, problem, tactic);
    if (is_hopper(tactic) && p.head_dim == 64) return launcher.template hopper<T, 64>(problem, tactic);
    if (is_hopper(tactic)) return launcher.template hopper<T, 128>(problem, tactic);
  }
  switch (tile_dim(p.head_dim, p.value_dim, kWidth)) {
    case 16:
      return launcher.template tile<T, 16>(problem, tactic);
    case 32:
      return launcher.template tile<T, 32>(problem, tactic);
    case 64:
      return launcher.template tile<T, 64>(problem, tactic);
    default:
      if constexpr (kWidth == 2) return launcher.template tile<T, 128>(problem, tactic);
  }
  return launcher.template plain<T>(problem);
}

// Calls the launcher for a problem of any type, with a tactic that na_cuda_tactics gave for it.
template <typename Launcher>
int32_t choose(const Launcher& launcher, const na_params& p, int32_t tactic) {
  switch (p.dtype) {
    case NA_FLOAT32:
      return choose_dim<float>(launcher, p, tactic);
    case NA_FLOAT16:
      return choose_dim<dev::Half>(launcher, p, tactic);
    default:
      return choose_dim<dev::Bfloat>(launcher, p, tactic);
  }
}

}  // namespace na_deploy::cuda
