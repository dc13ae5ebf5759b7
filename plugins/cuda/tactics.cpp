// Selection of the kernels that can compute a problem, the quickest first. Free of CUDA, so that it is tested
// everywhere.
#include "tactics.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <iterator>
#include <limits>

#include "bias_table.h"
#include "na_cuda.h"
#include "onepass/plan.h"

namespace na_deploy::cuda {
namespace {

constexpr int64_t kMost32 = std::numeric_limits<int32_t>::max() / 4;

constexpr int32_t kMostTactics = 16;
constexpr int32_t kRowsOfWarp = 16;

struct TileShape {
  int32_t tactic;
  int32_t rank;
  int tile[kAxes];
  int box[kAxes];
};

#define NA_TILE_ROW(id, rank, t0, t1, t2, b0, b1, b2) {id, rank, {t0, t1, t2}, {b0, b1, b2}},
#define NA_HOPPER_ROW(id, rank, t0, t1, t2) {id, rank, {t0, t1, t2}, {t0, t1, t2}},
constexpr TileShape kShapes[] = {NA_TILE_SHAPES(NA_TILE_ROW) NA_WIDE_SHAPES(NA_TILE_ROW)
                                     NA_HOPPER_SHAPES(NA_HOPPER_ROW)};
#undef NA_TILE_ROW
#undef NA_HOPPER_ROW

int refuse(char* message, size_t size, const char* format, long long number) {
  if (message != nullptr && size > 0) std::snprintf(message, size, format, number);
  return 1;
}

constexpr int32_t kFirstWide = 10;
constexpr bool is_wide(int32_t tactic) { return tactic >= kFirstWide && tactic < 20; }

int width_of(const na_params& p) { return p.dtype == NA_FLOAT32 ? 4 : 2; }

// The size of a problem as one shape cuts it.
struct Cut {
  double blocks;  // tiles of all images and heads
  double boxes;   // of one tile
  double keys;    // of these boxes that a warp computes; the rest is passed over
};

// Returns the cut of a problem into tiles, of which a warp takes 16 queries.
Cut cut_of(const na_params& p, const TileShape& shape) {
  Cut r{static_cast<double>(p.batch * p.heads), 1.0, 1.0};
  double seen = 1.0;
  double all = 1.0;
  int left = kRowsOfWarp;
  for (int a = p.rank - 1; a >= 0; --a) {
    const int tile = shape.tile[kAxes - p.rank + a];
    const int box = shape.box[kAxes - p.rank + a];
    const int own = std::min(left, tile);
    left /= own;
    const int64_t longest = group_length(p.length[a], p.dilation[a], 0);
    const auto span = [&](int queries) {
      return smaller<int64_t>(p.kernel_size[a] + larger<int64_t>(queries - p.stride[a], 0), longest);
    };
    const auto count = static_cast<double>((span(tile) + box - 1) / box);
    r.boxes *= count;
    all *= count * box;
    seen *= static_cast<double>(span(own));
    r.blocks *= static_cast<double>(p.dilation[a] * ((longest + tile - 1) / tile));
  }
  r.keys = std::min(all, 1.4 * seen);
  return r;
}

// Estimates the cycles of a shape on the device, where they cannot be measured. The numbers were fitted to the times of
// all shapes at 92 problems on an H100: a block alone is bound by latency, blocks together by instructions.
double cost(const na_params& p, const TileShape& shape, const onepass::Device& device) {
  const Cut cut = cut_of(p, shape);
  const double processors = device.multiprocessors;
  if (is_hopper(shape.tactic)) {
    const double box = 1900.0 + 11.0 * static_cast<double>(p.head_dim);
    return onepass::kLaunchCycles + std::ceil(cut.blocks / processors) * (6000.0 + box * cut.boxes);
  }
  const int dim = tile_dim(p.head_dim, p.value_dim, width_of(p));
  const int warps = shape.tile[0] * shape.tile[1] * shape.tile[2] / kRowsOfWarp;
  const int threads = is_wide(shape.tactic) || dim * width_of(p) > kNarrowBytes ? 256 : width_of(p) == 4 ? 384 : 512;
  const double resident = threads / (32 * warps);
  const double alone = 5270.0 + 1435.0 * cut.boxes * (is_wide(shape.tactic) ? 1.4 : 1.0);
  const double warp = 410.0 + 90.0 * cut.boxes + cut.keys * (0.6 + 0.021 * dim * width_of(p));
  const auto round = [&](double blocks) { return larger(alone, blocks * warps * warp); };
  const double rounds = std::floor(cut.blocks / (processors * resident));
  const double rest = cut.blocks - rounds * processors * resident;
  const double last = rest > 0 ? round(std::ceil(rest / processors)) : 0.0;
  return onepass::kLaunchCycles + rounds * round(resident) + last;
}

// Tactics with costs, the cheapest first; equal ones in the order of their addition.
struct Ranking {
  int32_t tactic[kMostTactics];
  double cost[kMostTactics];
  int32_t count = 0;

  void add(int32_t own_tactic, double own_cost) {
    int32_t at = count++;
    for (; at > 0 && own_cost < cost[at - 1]; --at) {
      tactic[at] = tactic[at - 1];
      cost[at] = cost[at - 1];
    }
    tactic[at] = own_tactic;
    cost[at] = own_cost;
  }
};

// Adds the one-pass kernel's tactics, including those with the same plan: engines keep a tactic for all sizes.
void add_onepass(const na_params& p, const onepass::Device& device, Ranking& ranking) {
  for (const int32_t tactic : kOnePassTactics) {
    const auto found = onepass::make_plan(p, onepass::tactic_warps(tactic), device);
    if (found) ranking.add(tactic, found->cost);
  }
}

bool hopper_takes(const na_params& p) {
  if (reaches_behind(p)) return false;
  double image = 2.0 * 3.0 * static_cast<double>(p.heads) * static_cast<double>(p.head_dim);  // bytes
  for (int a = 0; a < p.rank; ++a) image *= static_cast<double>(p.length[a]);
  constexpr double kFarthest = 1e12;  // the accelerator takes distances of less than 2^40 bytes
  if (image > kFarthest) return false;
  if (p.dtype == NA_FLOAT32 || p.head_dim != p.value_dim || (p.head_dim != 64 && p.head_dim != 128)) return false;
  for (int a = 0; a < p.rank; ++a) {
    if (p.dilation[a] != 1) return false;
  }
  return device_is_hopper();
}

// Returns whether the bias fits shared memory, the only place where the kernels for Hopper read it.
bool has_room_for_bias(const na_params& p, const TileShape& shape) {
  const Sizes tile{{shape.tile[0], shape.tile[1], shape.tile[2]}};
  const Sizes box{{shape.box[0], shape.box[1], shape.box[2]}};
  return p.rel_pos_bias == nullptr || shared_bias_numbers(make_cuda_problem(p, 2), tile, box) > 0;
}

}  // namespace
}  // namespace na_deploy::cuda

extern "C" int na_cuda_check(const na_params* params, char* message, size_t size) {
  using namespace na_deploy::cuda;
  if (na_check(params, message, size) != 0) return 1;
  const na_params& p = *params;
  if (p.head_dim > 32 * 8 || p.value_dim > 32 * 8) {
    const int64_t widest = p.head_dim > p.value_dim ? p.head_dim : p.value_dim;
    return refuse(message, size, "heads have at most 256 channels on a GPU, got %lld", widest);
  }
  const double row = 3.0 * static_cast<double>(p.heads) * static_cast<double>(p.head_dim + p.value_dim);
  if (row > static_cast<double>(kMost32)) {
    return refuse(message, size, "a position has at most %lld numbers on a GPU", kMost32);
  }
  double positions = 1.0;
  double keys = static_cast<double>(p.additional);
  for (int a = 0; a < p.rank; ++a) {
    positions *= static_cast<double>(na_deploy::padded_length(p.length[a], p.kernel_size[a], p.dilation[a]));
    keys += static_cast<double>(p.kernel_size[a]);
  }
  if (positions > static_cast<double>(kMost32) || keys > static_cast<double>(kMost32)) {
    return refuse(message, size, "a map has at most %lld positions on a GPU", kMost32);
  }
  return 0;
}

extern "C" int32_t na_cuda_tactics(const na_params* params, int32_t* tactics, int32_t capacity) {
  using namespace na_deploy::cuda;
  const na_params& p = *params;
  Ranking ranking;
  const int dim = tile_dim(p.head_dim, p.value_dim, width_of(p));
  const bool takes_wide = has_wide(dim, static_cast<size_t>(width_of(p)));
  const bool takes_hopper = hopper_takes(p);
  const onepass::Device device = present_device();
  for (const TileShape& shape : kShapes) {
    if (shape.rank != p.rank) continue;
    if (is_hopper(shape.tactic) ? !takes_hopper || !has_room_for_bias(p, shape) : dim == 0) continue;
    if (is_wide(shape.tactic) && !takes_wide) continue;
    ranking.add(shape.tactic, cost(p, shape, device));
  }
  add_onepass(p, device, ranking);
  ranking.tactic[ranking.count++] = kPlainTactic;
  const int32_t count = std::min(ranking.count, capacity);
  std::copy_n(ranking.tactic, count, tactics);
  return count;
}

extern "C" int32_t na_cuda_knows(int32_t tactic) {
  using namespace na_deploy::cuda;
  const bool is_shape = std::any_of(std::begin(kShapes), std::end(kShapes),
                                    [&](const TileShape& shape) { return shape.tactic == tactic; });
  const bool is_planned =
      std::find(std::begin(kOnePassTactics), std::end(kOnePassTactics), tactic) != std::end(kOnePassTactics);
  return tactic == kPlainTactic || is_shape || is_planned ? 1 : 0;
}

extern "C" int na_cuda_check_addresses(const na_params* params, char* message, size_t size) {
  constexpr uintptr_t kPiece = 16;  // bytes that kernels copy at once
  const na_params& p = *params;
  const auto width = static_cast<uintptr_t>(na_deploy::cuda::width_of(p));
  const struct {
    const char* name;
    const void* data;
    uintptr_t alignment;
  } tensors[] = {{p.packed != 0 ? "qkv" : "query", p.query, kPiece},
                 {"key", p.packed != 0 ? nullptr : p.key, kPiece},
                 {"value", p.packed != 0 ? nullptr : p.value, kPiece},
                 {"rel_pos_bias", p.rel_pos_bias, width},
                 {"additional_key", p.additional_key, kPiece},
                 {"additional_value", p.additional_value, kPiece},
                 {"padding", p.padding, kPiece},
                 {"output", p.output, kPiece},
                 {"lse", p.lse, sizeof(float)}};
  for (const auto& tensor : tensors) {
    const uintptr_t past = reinterpret_cast<uintptr_t>(tensor.data) % tensor.alignment;
    if (past == 0) continue;
    if (message != nullptr && size > 0) {
      std::snprintf(message, size,
                    "%s must begin at an address that is a multiple of %d on a GPU, got one %d bytes past it; bind a "
                    "copy of it",
                    tensor.name, static_cast<int>(tensor.alignment), static_cast<int>(past));
    }
    return 1;
  }
  return 0;
}

#ifndef NA_DEPLOY_KERNEL_REVISION
#error "NA_DEPLOY_KERNEL_REVISION is not defined; cmake/KernelRevision.cmake makes it from the kernels' sources"
#endif
extern "C" const char* na_cuda_revision() { return NA_DEPLOY_KERNEL_REVISION; }

int32_t na_deploy::cuda::known_tactic(const na_params& p, int32_t tactic) {
  int32_t known[kMostTactics];
  const int32_t count = na_cuda_tactics(&p, known, kMostTactics);
  if (tactic == kNoTactic) return known[0];
  return std::find(known, known + count, tactic) != known + count ? tactic : kNoTactic;
}
