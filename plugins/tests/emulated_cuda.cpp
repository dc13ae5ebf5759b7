// The GPU kernels on an emulated GPU, behind the interface that ctypes loads in tests.

#include "hopper/kernel.h"
#include "launch.h"
#include "onepass/groups.h"
#include "onepass/kernel.h"
#include "onepass/plan.h"
#include "plain_kernel.h"
#include "tile_kernel.h"

namespace na_deploy::cuda {
namespace {

// Lists the tensors that kernels may touch, for the emulator to check.
std::vector<emulated::Range> tensors_of(const na_params& p, size_t width) {
  size_t positions = static_cast<size_t>(p.batch);
  for (int a = 0; a < p.rank; ++a) positions *= static_cast<size_t>(p.length[a]);
  const auto heads = static_cast<size_t>(p.heads);
  const auto key_heads = static_cast<size_t>(p.key_heads);
  const auto head_dim = static_cast<size_t>(p.head_dim);
  const auto value_dim = static_cast<size_t>(p.value_dim);
  const size_t extra = static_cast<size_t>(p.batch * p.additional) * key_heads;
  std::vector<emulated::Range> found;
  const auto add = [&](const void* at, size_t elements) {
    if (at != nullptr) found.push_back({static_cast<const unsigned char*>(at), elements * width});
  };
  add(p.query, positions * heads * head_dim * (p.packed != 0 ? 3 : 1));
  add(p.padding, 3 * heads * head_dim);
  if (p.packed == 0) {
    add(p.key, positions * key_heads * head_dim);
    add(p.value, positions * key_heads * value_dim);
    add(p.additional_key, extra * head_dim);
    add(p.additional_value, extra * value_dim);
  }
  add(p.output, positions * heads * value_dim);
  return found;
}

struct Emulator {
  const na_params& params;

  template <typename Body>
  void grid(int64_t blocks, int threads, size_t shared, size_t width, const Body& body) const {
    const auto memory = tensors_of(params, width);
    for (int64_t b = 0; b < blocks; ++b) emulated::Block(b, blocks, threads, shared, memory).run(body);
  }
  template <typename T>
  int32_t plain(const CudaProblem& problem) const {
    const int64_t queries = problem.batch * problem.positions * problem.heads;
    grid((queries + 7) / 8, kPlainThreads, 16, sizeof(T), [&] { plain_kernel<T>(problem); });
    return 0;
  }
  template <typename T, int kDim, typename S>
  int32_t shape(const CudaProblem& problem) const {
    using L = Layout<T, kDim, S>;
    const TileGrid tiles = make_tile_grid(problem, S::tile());
    const int32_t shared_bias = shared_bias_numbers(problem, S::tile(), S::box());
    grid(tiles.blocks, L::kThreads, static_cast<size_t>(L::bytes(shared_bias)), sizeof(T),
         [&] { TileKernel<T, kDim, S>(problem, tiles, shared_bias).run(); });
    return 0;
  }
  template <typename T, int kDim>
  int32_t tile(const CudaProblem& problem, int32_t tactic) const {
#define NA_CASE(id, rank, t0, t1, t2, b0, b1, b2) \
  case id:                                        \
    return shape<T, kDim, Shape<rank, t0, t1, t2, b0, b1, b2>>(problem);
    if constexpr (has_wide(kDim, sizeof(T))) {
      switch (tactic) { NA_WIDE_SHAPES(NA_CASE) }
    }
    switch (tactic) {
      NA_TILE_SHAPES(NA_CASE)
      default:
        return 1;
    }
#undef NA_CASE
  }

  template <typename T, int kDim>
  int32_t onepass(const CudaProblem& problem, const onepass::Plan& plan, const onepass::Device& /*device*/) const {
    const int64_t blocks = problem.batch > 0 ? plan.grid.blocks * plan.shares : 0;
    const auto bytes = static_cast<size_t>(plan.room.bytes);
    if (onepass::is_grouped(plan.chunks)) {
      grid(blocks, 32 * plan.warps, bytes, sizeof(T), [&] { onepass::GroupedKernel<T, kDim>(problem, plan).run(); });
      return 0;
    }
#define NA_CASE(chunks)                                                          \
  case chunks:                                                                   \
    grid(blocks, 32 * plan.warps, bytes, sizeof(T),                              \
         [&] { onepass::OnePassKernel<T, kDim, chunks>(problem, plan).run(); }); \
    return 0;
    switch (plan.chunks) {
      NA_ONEPASS_CHUNKS(NA_CASE)
      default:
        return 1;
    }
#undef NA_CASE
  }

  template <typename T, int kDim, typename S>
  int32_t hopper_shape(const CudaProblem& problem) const {
    const TileGrid tiles = make_tile_grid(problem, S::tile());
    const auto tensors = hopper::make_tensors<S>(problem, [](const hopper::TensorBox& tensor) { return tensor; });
    grid(tiles.blocks, hopper::kThreads,
         static_cast<size_t>(hopper::HopperLayout<kDim, S>::bytes(shared_bias_numbers(problem, S::tile(), S::box()))),
         sizeof(T), [&] { hopper::HopperKernel<T, kDim, S>(problem, tiles, tensors).run(); });
    return 0;
  }
  template <typename T, int kDim>
  int32_t hopper(const CudaProblem& problem, int32_t tactic) const {
#define NA_CASE(id, rank, t0, t1, t2) \
  case id:                            \
    return hopper_shape<T, kDim, Shape<rank, t0, t1, t2, t0, t1, t2>>(problem);
    switch (tactic) {
      NA_HOPPER_SHAPES(NA_CASE)
      default:
        return 1;
    }
#undef NA_CASE
  }
};

}  // namespace

bool device_is_hopper() { return true; }

// A small device, so that blocks take several images.
onepass::Device present_device() { return {2, 99 * 1024, 100 * 1024}; }

}  // namespace na_deploy::cuda

extern "C" NA_CUDA_API int32_t na_forward_emulated(const na_params* params, int32_t tactic) {
  const int32_t known = na_deploy::cuda::known_tactic(*params, tactic);
  if (known == na_deploy::cuda::kNoTactic) return 1;
  return na_deploy::cuda::choose(na_deploy::cuda::Emulator{*params}, *params, known);
}

// Returns how many queries were computed again since the last call, because their result was no number.
extern "C" NA_CUDA_API int64_t na_computed_again(void) {
  return na_deploy::cuda::dev::queries_computed_again.exchange(0) / 32;
}

// Writes the needs of tile `number` of a problem, for tests of the shared cutting: [first query, range, box flags …] as
// the kernel sees them. Returns the number of boxes that the kernel would compute; `inside` receives how many of them
// need no mask.
extern "C" NA_CUDA_API int32_t na_tile_boxes(const na_params* params, const int32_t* tile, const int32_t* box,
                                             int64_t number, int32_t* first_query, int32_t* groups, int32_t* firsts,
                                             int32_t* inside, int32_t capacity) {
  using namespace na_deploy::cuda;
  const CudaProblem p = make_cuda_problem(*params, 2);
  const Sizes t{{tile[0], tile[1], tile[2]}};
  const Sizes b{{box[0], box[1], box[2]}};
  const Tile at = tile_at(p, make_tile_grid(p, t), t, static_cast<int32_t>(number));
  if (at.is_empty) return -1;
  for (int a = 0; a < kAxes; ++a) {
    first_query[a] = at.first[a];
    groups[a] = at.group[a];
  }
  int32_t count = 0;
  for (KeyStep step = first_step(at); !step.is_additional() && count < capacity; advance(at, b, 0, step)) {
    for (int a = 0; a < kAxes; ++a) firsts[3 * count + a] = step.first[a];
    inside[count++] = is_inside(at, b, 0, step, p.additional) ? 1 : 0;
  }
  return count;
}

// Returns how many rows of queries the one-pass kernel's warps take for a problem, empty rows included; -1 if the
// kernel does not take the problem.
extern "C" NA_CUDA_API int64_t na_onepass_rows(const na_params* params, int32_t tactic) {
  using namespace na_deploy::cuda;
  const auto found = onepass::make_plan(*params, onepass::tactic_warps(tactic), present_device());
  if (!found) return -1;
  const onepass::Plan& plan = found->plan;
  const int64_t turns = (params->batch + plan.images - 1) / plan.images;
  return plan.grid.blocks * turns * plan.warps * onepass::kRowQueries;
}

// Returns the chunks of 16 keys that a warp of the one-pass kernel goes through; -1 if it does not take the problem.
extern "C" NA_CUDA_API int32_t na_onepass_chunks(const na_params* params, int32_t tactic) {
  using namespace na_deploy::cuda;
  const auto found = onepass::make_plan(*params, onepass::tactic_warps(tactic), present_device());
  return found ? found->plan.chunks : -1;
}

extern "C" NA_CUDA_API int64_t na_tile_count(const na_params* params, const int32_t* tile) {
  const na_deploy::cuda::Sizes t{{tile[0], tile[1], tile[2]}};
  return na_deploy::cuda::make_tile_grid(na_deploy::cuda::make_cuda_problem(*params, 2), t).blocks;
}
