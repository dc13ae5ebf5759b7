// Which kernels can compute a problem, and which of them first. Knows no CUDA, so that it is tested everywhere.
#include "tactics.h"

#include <algorithm>
#include <cstdio>
#include <limits>

#include "na_cuda.h"

namespace na_deploy {
namespace {

constexpr int64_t kMost32 = std::numeric_limits<int32_t>::max() / 4;

struct TileShape {
  int32_t tactic;
  int32_t rank;
  int tile[kAxes];
};

#define NA_ROW(id, rank, t0, t1, t2, b0, b1, b2) {id, rank, {t0, t1, t2}},
constexpr TileShape kShapes[] = {NA_TILE_SHAPES(NA_ROW)};
#undef NA_ROW

int refuse(char* message, size_t size, const char* format, long long number) {
  if (message != nullptr && size > 0) std::snprintf(message, size, format, number);
  return 1;
}

// Query rows that all tiles hold together, in relation to those there are: what short groups waste.
double waste(const na_params& p, const TileShape& shape) {
  double held = 1.0;
  double real = 1.0;
  for (int a = 0; a < p.rank; ++a) {
    const int tile = shape.tile[kAxes - p.rank + a];
    const int64_t longest = group_length(p.length[a], p.dilation[a], 0);
    held *= static_cast<double>(p.dilation[a] * ((longest + tile - 1) / tile) * tile);
    real *= static_cast<double>(p.length[a]);
  }
  return held / real;
}

}  // namespace
}  // namespace na_deploy

extern "C" int na_cuda_check(const na_params* params, char* message, size_t size) {
  using namespace na_deploy;
  if (na_check(params, message, size) != 0) return 1;
  const na_params& p = *params;
  if (p.head_dim > 32 * 8 || p.value_dim > 32 * 8) {
    const int64_t widest = p.head_dim > p.value_dim ? p.head_dim : p.value_dim;
    return refuse(message, size, "heads have at most 256 channels on a GPU, got %lld", widest);
  }
  double positions = 1.0;
  double keys = static_cast<double>(p.additional);
  for (int a = 0; a < p.rank; ++a) {
    positions *= static_cast<double>(padded_length(p.length[a], p.kernel_size[a], p.dilation[a]));
    keys += static_cast<double>(p.kernel_size[a]);
  }
  if (positions > static_cast<double>(kMost32) || keys > static_cast<double>(kMost32)) {
    return refuse(message, size, "a map has at most %lld positions on a GPU", kMost32);
  }
  return 0;
}

extern "C" int32_t na_cuda_tactics(const na_params* params, int32_t* tactics, int32_t capacity) {
  using namespace na_deploy;
  const na_params& p = *params;
  int32_t found[16];
  double cost[16];
  int32_t count = 0;
  if (p.dtype != NA_FLOAT32 && tile_dim(p.head_dim, p.value_dim) != 0 && !reaches_behind(p)) {
    for (const TileShape& shape : kShapes) {
      if (shape.rank != p.rank) continue;
      const double own = waste(p, shape);
      int32_t at = count++;
      for (; at > 0 && own < cost[at - 1] * 0.999; --at) {  // among equals the table's order stays
        found[at] = found[at - 1];
        cost[at] = cost[at - 1];
      }
      found[at] = shape.tactic;
      cost[at] = own;
    }
  }
  found[count++] = kPlainTactic;
  count = std::min(count, capacity);
  std::copy_n(found, count, tactics);
  return count;
}
