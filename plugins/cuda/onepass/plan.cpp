// The choice of a plan: every shape of tiles that fits is weighed by a model of its time. Knows no CUDA.
#include "onepass/plan.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>
#include <map>

#include "tactics.h"

namespace na_deploy::cuda::onepass {
namespace {

int32_t up(int32_t number, int32_t to) { return (number + to - 1) / to; }

// Returns the number of keys that `queries` neighbouring queries see at most, of `reached` there are.
int32_t span_of(const AxisSizes& axis, int32_t queries, int32_t reached) {
  const int32_t further = up(queries - 1, axis.stride) * axis.stride;
  return std::min(axis.kernel_size + further, reached);
}

// Returns the least number from `number` on that leaves the rest `rest` by `by`. Of rows that are neighbours in the
// hull eight then meet in no bank.
int32_t with_rest(int32_t number, int32_t rest, int32_t by = 8) { return number + ((rest - number) % by + by) % by; }

struct Search {
  const CudaProblem& problem;
  const Device& device;
  int rank;
  int dim;
  int32_t most_warps;
  int32_t least_warps;
  int32_t reached[kAxes];
  std::optional<Costed> best;

  int row_bytes() const { return dim * 2; }

  // The queries of a warp along each axis, and its images, at most: of all warps that take 16 in a row.
  void flat_extent(const Plan& plan, Sizes& extent, int32_t& images) const {
    const int32_t inner = plan.tile[2];
    const int32_t plane = inner * plan.tile[1];
    const int32_t all = plane * plan.tile[0];
    extent = {{1, 1, 1}};
    images = 1;
    for (int32_t first = 0; first < all * plan.images; first += kRowQueries) {
      const int32_t last = std::min(first + kRowQueries, all * plan.images) - 1;
      const int32_t own = last / all - first / all + 1;
      const int32_t planes = own > 1 ? plan.tile[0] : last / plane - first / plane + 1;
      const int32_t lines = own > 1 || planes > 1 ? plan.tile[1] : last / inner - first / inner + 1;
      const bool many = own > 1 || planes > 1 || lines > 1;
      const int32_t columns = many ? inner : last % inner - first % inner + 1;
      images = std::max(images, own);
      extent = {{std::max(extent[0], planes), std::max(extent[1], lines), std::max(extent[2], columns)}};
    }
  }

  // Makes neighbouring keys of an even number and the next neighbours on the map too, and lays out the table of biases.
  void take_pairs(Plan& plan) const {
    plan.span.at[2] += plan.span[2] % 2;
    plan.hull.at[2] = std::max(plan.hull[2], plan.span[2]);
    plan.keys = plan.span[0] * plan.span[1] * plan.span[2];
    // Keys of a hull that a query does not see are no further from its window than `further`. Where eight keys in a row
    // reach the next line, its biases lie past those of four queries' line in the banks, of which there are 16 pairs.
    int32_t numbers = 1;
    int32_t last = 0;  // index of the hull's last key, from its first
    for (int a = kAxes - 1, keys = 1; a >= 0; keys *= plan.span[a--]) {
      const AxisSizes& axis = problem.axis[a];
      const int32_t further = plan.span[a] - (axis.is_causal != 0 ? 1 : axis.kernel_size);
      plan.bias_pitch.at[a] = keys % 8 == 0 || a == kAxes - 1 ? numbers : with_rest(numbers, last + 4, 16);
      plan.biases_below += further * plan.bias_pitch[a];
      numbers = plan.bias_pitch[a] * (2 * axis.kernel_size - 1);
      last += (plan.span[a] - 1) * plan.bias_pitch[a];
    }
    plan.biases = problem.rel_pos_bias != nullptr ? numbers + 2 * plan.biases_below : 0;
  }

  // Completes a plan of which tile, part and images are chosen, and keeps it if it is the best.
  void weigh(Plan plan) {
    const int32_t whole = plan.tile[0] * plan.tile[1] * plan.tile[2];
    Sizes extent = plan.part;
    plan.image_span = 1;
    if (plan.is_flat != 0) {
      plan.warps = up(whole * plan.images, kRowQueries);
      flat_extent(plan, extent, plan.image_span);
    } else {
      plan.warps = plan.images * (whole / (plan.part[0] * plan.part[1] * plan.part[2]));
    }
    for (int a = 0; a < kAxes; ++a) {
      plan.hull.at[a] = span_of(problem.axis[a], plan.tile[a], reached[a]);
      plan.span.at[a] = std::min(span_of(problem.axis[a], extent[a], reached[a]), plan.hull[a]);
      if (plan.span[a] > most_span(a)) return;
    }
    plan.keys = plan.span[0] * plan.span[1] * plan.span[2];
    int32_t needed = up(plan.keys * plan.image_span, kChunk);
    plan.chunks = 0;
    for (int a = 0; a < kAxes; ++a) plan.bias_pitch.at[a] = problem.bias_distance[a];
    for (const int32_t kind : kChunkKinds) {
      if (kind >= needed && plan.chunks == 0) plan.chunks = kind;
    }
    if (is_grouped(needed)) {
      take_pairs(plan);
      needed = up(plan.keys * plan.image_span, kChunk);
      if (needed > kMostChunks) return;
      plan.chunks = needed;
    }
    if (plan.warps > std::min(most_warps, onepass::most_warps(dim, plan.chunks))) return;
    plan.pitch.at[2] = 1;
    plan.pitch.at[1] = with_rest(plan.hull[2], plan.span[2]);
    plan.pitch.at[0] = with_rest(plan.hull[1] * plan.pitch[1], plan.span[1] * plan.span[2]);
    plan.image_pitch = with_rest(plan.hull[0] * plan.pitch[0], plan.keys);
    const int32_t past = is_grouped(plan.chunks) ? plan.chunks * kChunk - plan.keys * plan.image_span : kChunk;
    plan.rows = up(plan.images * plan.image_pitch + past, 8) * 8;
    constexpr int32_t kMostBytes = 1 << 16;  // places of rows are 16 bits
    if (plan.rows * row_bytes() > kMostBytes && !is_grouped(plan.chunks)) return;
    if (plan.warps < least_warps) return;
    for (plan.stages = 2; plan.stages >= 1; --plan.stages) {
      const int32_t bytes = room_of(plan, dim).bytes;
      if (bytes > device.block_shared) continue;
      const double own = cost(plan, bytes);
      if (!best || own < best->cost) best = Costed{plan, own};
      if (!is_grouped(plan.chunks)) return;
    }
  }

  // Completes a plan with the number of blocks that share a tile's images, and returns its cycles on the device. The
  // numbers without a unit of their own were fitted to 4,266 plans of 85 problems, timed on an H100.
  double cost(Plan& plan, int32_t bytes) const {
    const int32_t threads = resident_threads(dim, plan.chunks, false);
    const int32_t resident = std::max(1, std::min(threads / (32 * plan.warps), device.shared / (bytes + 1024)));
    const Turn turn = turn_of(plan);
    const auto cycles = [&](double blocks) {  // of a turn, while so many blocks share a multiprocessor
      return std::max({0.53 * turn.instructions, 1.42 * turn.wavefronts, 0.016 * turn.bytes}) * blocks +
             (plan.stages == 1 ? 1840.0 : 1320.0);
    };
    const double full = cycles(resident);
    double tiles = problem.heads;
    for (int a = 0; a < kAxes; ++a) {
      tiles *= static_cast<double>(problem.axis[a].dilation) * up(problem.axis[a].longest, plan.tile[a]);
    }
    const auto batch = static_cast<int32_t>(std::clamp<int64_t>(problem.batch, 1, 1 << 20));
    const int32_t turns = up(batch, plan.images);
    const double places = static_cast<double>(device.multiprocessors) * resident;
    const double begin = 3250.0 + 580.0 * plan.chunks + 810.0 * trips_of(plan);
    constexpr int32_t kMostShares = 1024;
    double least = std::numeric_limits<double>::max();
    for (int32_t shares = 1; shares <= std::min(turns, kMostShares);) {
      const int32_t each = up(turns, shares);
      const double blocks = tiles * shares;
      const double rounds = std::floor(blocks / places);
      const double rest = blocks - rounds * places;
      double time = rounds * (begin + each * full);
      if (rest > 0) time += begin + each * cycles(std::ceil(rest / device.multiprocessors));
      if (time < least) {
        least = time;
        plan.shares = shares;
      }
      // Goes on with the next number of blocks that leaves a block fewer turns.
      shares = each == 1 ? turns + 1 : up(turns, each - 1);
    }
    return kLaunchCycles + least;
  }

  // The work of one block in one turn, its images of one tile.
  struct Turn {
    double instructions;  // of all warps
    double wavefronts;    // of shared memory
    double bytes;         // from and to the second cache
  };
  Turn turn_of(const Plan& plan) const {
    const double rows = plan.hull[0] * plan.hull[1] * plan.hull[2] * plan.images;  // that are loaded
    const double warps = plan.warps;
    // A warp passes over chunks that few_chunks() leaves out if its queries are of one image.
    double chunks = plan.chunks;
    const int32_t few = few_chunks(plan.chunks);
    if (up(plan.keys, kChunk) <= few) chunks = few;
    if (plan.image_span > 1 && chunks < plan.chunks) chunks += (plan.chunks - few) * (plan.images - 1) / warps;
    const double read =
        std::max(chunks - register_chunks(dim, plan.chunks), 0.0);  // of which the start is not there yet
    const bool grouped = is_grouped(plan.chunks);
    const double own = !grouped ? 2 : plan.biases > 0 ? 30 : 18;  // instructions of a chunk for its start and its group
    const double starts = !grouped ? 8 : plan.biases > 0 ? 10 : 1;
    const double instructions = 120.0 + 1.2 * dim + chunks * (32.0 + dim / 16 * 6.0) + read * own + trips_of(plan) * 26;
    const double wavefronts =
        chunks * kChunk * row_bytes() / 64.0 + read * starts + row_bytes() / 2 + rows * row_bytes() / 64 / warps;
    return {warps * instructions, warps * wavefronts, (2 * rows + 2 * kRowQueries * warps) * row_bytes()};
  }
  double trips_of(const Plan& plan) const { return up(plan.rows, kTrip * rows_at_once(plan.warps, row_bytes())); }

  // Tiles of whole parts.
  void weigh_parts(Sizes part) {
    Plan plan{};
    plan.part = part;
    plan.images = 1;
    int32_t most[kAxes];
    for (int a = 0; a < kAxes; ++a) most[a] = std::min(up(problem.axis[a].longest, part[a]), most_warps);
    for (int32_t i = 1; i <= most[0]; ++i) {
      for (int32_t j = 1; j <= most[1] && i * j <= most_warps; ++j) {
        for (int32_t k = 1; k <= most[2] && i * j * k <= most_warps; ++k) {
          plan.tile = {{i * part[0], j * part[1], k * part[2]}};
          weigh(plan);
        }
      }
    }
  }

  // Tiles whose queries are taken 16 in a row; several images at once where a tile is all of a dilation group.
  void weigh_flat() {
    Plan plan{};
    plan.is_flat = 1;
    plan.part = {{1, 1, 1}};
    constexpr int32_t kMostSplits = 8;
    int32_t most[kAxes];
    for (int a = 0; a < kAxes; ++a) most[a] = std::min(problem.axis[a].longest, kMostSplits);
    const auto each = [&](int a, int32_t splits) { return up(problem.axis[a].longest, splits); };
    for (int32_t i = 1; i <= most[0]; ++i) {
      for (int32_t j = 1; j <= most[1]; ++j) {
        for (int32_t k = 1; k <= most[2]; ++k) {
          plan.tile = {{each(0, i), each(1, j), each(2, k)}};
          const int64_t whole = int64_t{plan.tile[0]} * plan.tile[1] * plan.tile[2];
          const bool is_all = i * j * k == 1;
          for (plan.images = 1; plan.images <= (is_all ? kMostSplits : 1); ++plan.images) {
            if (plan.images > std::max<int64_t>(problem.batch, 1)) break;
            if (whole * plan.images <= int64_t{kRowQueries} * most_warps) weigh(plan);
          }
        }
      }
    }
  }

  void run() {
    for (int32_t i = 1; i <= kRowQueries; i *= 2) {
      for (int32_t j = 1; i * j <= kRowQueries; j *= 2) {
        const Sizes part{{i, j, kRowQueries / (i * j)}};
        if ((rank < 3 && i > 1) || (rank < 2 && j > 1)) continue;
        weigh_parts(part);
      }
    }
    weigh_flat();
  }
};

void finish(const CudaProblem& p, int dim, Plan& plan) {
  for (int a = 0; a < kAxes; ++a) {
    plan.by_tile[a] = make_divisor(plan.tile[a]);
    plan.by_part[a] = make_divisor(plan.part[a]);
    plan.by_parts[a] = make_divisor(plan.is_flat != 0 ? 1 : plan.tile[a] / plan.part[a]);
    plan.by_span[a] = make_divisor(plan.span[a]);
  }
  plan.by_pitch[0] = make_divisor(plan.pitch[0]);
  plan.by_pitch[1] = make_divisor(plan.pitch[1]);
  for (int a = 0; a < 2; ++a) plan.by_bias_pitch[a] = make_divisor(plan.bias_pitch[a]);
  plan.by_image_pitch = make_divisor(plan.image_pitch);
  plan.grid = make_tile_grid(p, plan.tile);
  plan.grid.blocks = p.batch > 0 ? plan.grid.blocks / p.batch : 0;
  plan.room = room_of(plan, dim);
}

std::optional<Costed> search(const na_params& p, int32_t most_warps, const Device& device) {
  constexpr float kLeastScale = 1e-20F;  // biases are divided by it
  if (p.dtype == NA_FLOAT32 || p.head_dim != p.value_dim || p.additional > 0 || p.head_dim > 64) return std::nullopt;
  if (p.scale != 0.0F && !(p.scale > kLeastScale)) return std::nullopt;
  const int dim = tile_dim(p.head_dim, p.value_dim, 2);
  if (dim == 0) return std::nullopt;
  const CudaProblem problem = make_cuda_problem(p, 2);
  constexpr int64_t kMostPositions = std::numeric_limits<int32_t>::max();  // of all images, counted in 32 bits
  constexpr int64_t kMostImage = int64_t{1} << 30;  // bytes, so that pieces of several count in 31 bits
  if (problem.batch * problem.positions > kMostPositions) return std::nullopt;
  if (int64_t{2} * problem.positions * problem.query_position > kMostImage) return std::nullopt;
  Search found{problem, device, p.rank, dim, most_warps, most_warps > 4 ? most_warps / 2 + 1 : 1, {}, std::nullopt};
  for (int a = 0; a < kAxes; ++a) found.reached[a] = std::max(problem.axis[a].longest, problem.axis[a].kernel_size);
  found.run();
  if (!found.best) {
    found.least_warps = 1;
    found.run();
  }
  if (found.best) finish(problem, dim, found.best->plan);
  return found.best;
}

// Everything that a plan depends on.
using Question = std::array<int64_t, 24>;
Question question_of(const na_params& p, int32_t most_warps, const Device& device) {
  Question q{};
  size_t n = 0;
  for (int a = 0; a < p.rank; ++a) {
    for (const int64_t size : {p.length[a], p.kernel_size[a], p.dilation[a], p.stride[a], p.is_causal[a]})
      q[n++] = size;
  }
  const bool has_scale = p.scale == 0.0F || p.scale > 1e-20F;
  for (const int64_t size :
       {p.batch, p.heads, p.head_dim, p.value_dim,
        int64_t{p.rank} + 4 * p.dtype + 512 * p.key_heads + (p.packed != 0 ? 32 : 0) + (p.additional > 0 ? 64 : 0) +
            (has_scale ? 128 : 0) + (p.rel_pos_bias != nullptr ? 256 : 0),
        int64_t{most_warps}, int64_t{device.multiprocessors}, int64_t{device.block_shared}, int64_t{device.shared}}) {
    q[n++] = size;
  }
  return q;
}

}  // namespace

std::optional<Costed> make_plan(const na_params& p, int32_t most_warps, const Device& device) {
  constexpr size_t kMostRemembered = 256;
  thread_local std::map<Question, std::optional<Costed>> remembered;
  const Question question = question_of(p, most_warps, device);
  const auto known = remembered.find(question);
  if (known != remembered.end()) return known->second;
  if (remembered.size() >= kMostRemembered) remembered.clear();
  return remembered[question] = search(p, most_warps, device);
}

}  // namespace na_deploy::cuda::onepass
