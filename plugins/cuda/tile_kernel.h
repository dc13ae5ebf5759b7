// Fused neighborhood attention on tensor cores, for 16-bit numbers.
//
// A block of threads takes a tile of queries (one image, head and dilation group), 16 of them to a warp, and goes
// through boxes of 64 keys: loaded once for the whole tile from the tensors as they are, heads last, two boxes in
// flight; scores, mask, bias and an online softmax in registers in float32. Boxes that no query sees are skipped, those
// that all see are not masked. Nothing of the size of scores leaves the registers.
#pragma once

#include <cmath>
#include <cstdint>
#include <type_traits>

#include "device.h"
#include "problem.h"
#include "tiles.h"

namespace na_deploy {

constexpr int kBoxKeys = 64;
constexpr float kLog2E = 1.44269504F;
constexpr float kLn2 = 0.693147181F;

// Queries of a tile and keys of a box along each axis.
template <int kT0, int kT1, int kT2, int kB0, int kB1, int kB2>
struct Shape {
  static NA_HOST_DEVICE constexpr Sizes tile() { return {{kT0, kT1, kT2}}; }
  static NA_HOST_DEVICE constexpr Sizes box() { return {{kB0, kB1, kB2}}; }
  static constexpr int kQueries = kT0 * kT1 * kT2;
  static constexpr int kThreads = 2 * kQueries;
  static_assert(kB0 * kB1 * kB2 == kBoxKeys, "a box has 64 keys");
  static_assert(kQueries % 16 == 0 && kQueries <= 2 * kBoxKeys, "a warp takes 16 queries; they pass through a stage");
};

// Rows of kDim numbers in shared memory, 16 bytes at a time, so arranged that eight rows never meet in a bank.
template <int kDim>
struct Rows {
  static constexpr int kPieces = kDim / 8;
  static constexpr int kBytes = kDim * 2;
  static constexpr int kShift = kPieces >= 8 ? 0 : kPieces == 4 ? 1 : 2;
  static constexpr int kMask = kPieces >= 8 ? 7 : kPieces - 1;

  NA_DEVICE static dev::Shared at(dev::Shared base, int row, int piece) {
    return base + static_cast<dev::Shared>(row * kBytes + ((piece ^ ((row >> kShift) & kMask)) * 16));
  }
};

// What a query attends to; all of them lie in shared memory, since registers are for scores and sums.
struct RowWindow {
  int32_t start[kAxes];
  int32_t extent[kAxes];
  int32_t element[kAxes];
};

// Shared memory: two stages of keys and values, the tile, its boxes, the queries' windows.
template <int kDim, typename S>
struct Layout {
  static constexpr int kStages = 4 * kBoxKeys * kDim * 2;
  static constexpr int kBoxes = kStages + static_cast<int>(sizeof(Tile));
  static constexpr int kWindows = kBoxes + static_cast<int>(sizeof(KeyBoxes));
  static constexpr int kBytes = kWindows + static_cast<int>(sizeof(RowWindow)) * S::kQueries;
};

template <typename T, int kDim, typename S>
class TileKernel {
 public:
  NA_DEVICE explicit TileKernel(const CudaProblem& problem)
      : p_(problem),
        tile_(dev::shared_object<Tile>(Layout<kDim, S>::kStages)),
        boxes_(dev::shared_object<KeyBoxes>(Layout<kDim, S>::kBoxes)) {}

  NA_DEVICE void run() {
    if (dev::thread() == 0) {
      tile_ = tile_at(p_, S::tile(), dev::block());
      if (!tile_.is_empty) boxes_ = key_boxes(tile_, S::box(), p_.additional);
    }
    dev::sync();
    if (tile_.is_empty) return;
    int32_t step = next_step(tile_, boxes_, S::box(), 0);
    load_queries(stage(1));
    load_box(box(step), stage(0));
    dev::commit_copies();
    find_windows();
    dev::wait_copies<0>();
    dev::sync();
    read_queries(stage(1));
    dev::sync();
    for (int turn = 0; step < boxes_.steps; ++turn) {
      const int32_t following = next_step(tile_, boxes_, S::box(), step + 1);
      if (following < boxes_.steps) load_box(box(following), stage((turn + 1) % 2));
      dev::commit_copies();
      dev::wait_copies<1>();
      dev::sync();
      attend(box(step), stage(turn % 2));
      dev::sync();
      step = following;
    }
    write(stage(0));
  }

 private:
  NA_DEVICE static dev::Shared stage(int number) {
    return dev::shared_base() + static_cast<dev::Shared>(number * 2 * kBoxKeys * kDim * 2);
  }
  NA_DEVICE static dev::Shared values_of(dev::Shared stage) {
    return stage + static_cast<dev::Shared>(kBoxKeys * kDim * 2);
  }

  NA_DEVICE KeyBox box(int32_t step) const { return box_at(tile_, boxes_, S::box(), p_.additional, step); }
  NA_DEVICE static RowWindow& window(int row) {
    return dev::shared_object<RowWindow>(Layout<kDim, S>::kWindows + row * static_cast<int>(sizeof(RowWindow)));
  }

  // Query `row` of the tile: its flat position in the image, or -1 past the group's end.
  NA_DEVICE int32_t query_position(int row) const {
    int32_t coordinate[kAxes];
    split(row, S::tile(), coordinate);
    int32_t at = 0;
    NA_UNROLL
    for (int a = 0; a < kAxes; ++a) {
      const int32_t element = tile_.first[a] + coordinate[a];
      if (element >= tile_.size[a]) return -1;
      at = at * p_.axis[a].length + element * p_.axis[a].dilation + tile_.group[a];
    }
    return at;
  }

  NA_DEVICE static void split(int row, Sizes sizes, int32_t (&coordinate)[kAxes]) {
    NA_UNROLL
    for (int a = kAxes - 1; a >= 0; --a) {
      coordinate[a] = row % sizes[a];
      row /= sizes[a];
    }
  }

  NA_DEVICE void load_queries(dev::Shared to) const {
    const T* image = static_cast<const T*>(p_.query) + tile_.image * p_.positions * p_.query_position +
                     int64_t{tile_.head} * p_.head_dim;
    NA_NO_UNROLL
    for (int n = dev::thread(); n < S::kQueries * Rows<kDim>::kPieces; n += S::kThreads) {
      const int row = n / Rows<kDim>::kPieces;
      const int piece = n % Rows<kDim>::kPieces;
      const int32_t at = query_position(row);
      const bool inside = at >= 0 && piece * 8 < p_.head_dim;
      dev::copy_ahead(Rows<kDim>::at(to, row, piece), inside ? image + at * p_.query_position + piece * 8 : p_.query,
                      inside);
    }
  }

  NA_DEVICE void read_queries(dev::Shared from) {
    const int lane = dev::thread() % 32;
    const int row = dev::thread() / 32 * 16 + lane % 16;
    NA_UNROLL
    for (int k = 0; k < kDim / 16; ++k) dev::load_matrices(query_[k], Rows<kDim>::at(from, row, 2 * k + lane / 16));
  }

  NA_DEVICE void load_box(const KeyBox& box, dev::Shared stage) const {
    const int32_t key_head = tile_.head / p_.heads_per_key;
    if (box.is_additional) {
      const int64_t key_heads = p_.heads / p_.heads_per_key;
      const int64_t first = (tile_.image * p_.additional + box.first[0]) * key_heads + key_head;
      load_additional(static_cast<const T*>(p_.additional_key) + first * p_.head_dim, key_heads, p_.head_dim,
                      p_.additional - box.first[0], stage);
      load_additional(static_cast<const T*>(p_.additional_value) + first * p_.value_dim, key_heads, p_.value_dim,
                      p_.additional - box.first[0], values_of(stage));
      return;
    }
    const int64_t image = tile_.image * p_.positions;
    load_map(static_cast<const T*>(p_.key) + image * p_.key_position + int64_t{key_head} * p_.head_dim, p_.key_position,
             p_.head_dim, box, stage);
    load_map(static_cast<const T*>(p_.value) + image * p_.value_position + int64_t{key_head} * p_.value_dim,
             p_.value_position, p_.value_dim, box, values_of(stage));
  }

  NA_DEVICE void load_map(const T* from, int64_t distance, int32_t dim, const KeyBox& box, dev::Shared to) const {
    NA_NO_UNROLL
    for (int n = dev::thread(); n < kBoxKeys * Rows<kDim>::kPieces; n += S::kThreads) {
      const int row = n / Rows<kDim>::kPieces;
      const int piece = n % Rows<kDim>::kPieces;
      int32_t coordinate[kAxes];
      split(row, S::box(), coordinate);
      int32_t at = 0;
      bool inside = piece * 8 < dim;
      NA_UNROLL
      for (int a = 0; a < kAxes; ++a) {
        const int32_t element = box.first[a] + coordinate[a];
        inside = inside && element < tile_.size[a];
        at = at * p_.axis[a].length + element * p_.axis[a].dilation + tile_.group[a];
      }
      dev::copy_ahead(Rows<kDim>::at(to, row, piece), inside ? from + at * distance + piece * 8 : from, inside);
    }
  }

  NA_DEVICE void load_additional(const T* from, int64_t key_heads, int32_t dim, int32_t left, dev::Shared to) const {
    NA_NO_UNROLL
    for (int n = dev::thread(); n < kBoxKeys * Rows<kDim>::kPieces; n += S::kThreads) {
      const int row = n / Rows<kDim>::kPieces;
      const int piece = n % Rows<kDim>::kPieces;
      const bool inside = row < left && piece * 8 < dim;
      dev::copy_ahead(Rows<kDim>::at(to, row, piece), inside ? from + row * key_heads * dim + piece * 8 : from, inside);
    }
  }

  NA_DEVICE void find_windows() const {
    const int row = dev::thread();
    if (row >= S::kQueries) return;
    int32_t coordinate[kAxes];
    split(row, S::tile(), coordinate);
    NA_UNROLL
    for (int a = 0; a < kAxes; ++a) {
      const auto element = static_cast<int32_t>(smaller(tile_.first[a] + coordinate[a], tile_.size[a] - 1));
      const AxisSizes& axis = p_.axis[a];
      const Window w = group_window(element, tile_.size[a], axis.kernel_size, axis.stride, axis.is_causal != 0);
      window(row).start[a] = static_cast<int32_t>(w.start);
      window(row).extent[a] = static_cast<int32_t>(w.end - w.start);
      window(row).element[a] = element;
    }
  }

  // What a query sees of a box of the map: a bit for each place along each axis; and where its biases begin.
  using Bits = std::conditional_t<(S::box()[2] > 32), uint64_t, uint32_t>;
  struct Seen {
    Bits axis[kAxes];
    int32_t bias;
  };

  NA_DEVICE static Bits low_bits(int32_t count) {
    constexpr int kBits = 8 * static_cast<int>(sizeof(Bits));
    return count <= 0 ? 0 : count >= kBits ? static_cast<Bits>(~Bits{0}) : (Bits{1} << count) - 1;
  }

  NA_DEVICE Seen seen_in(const KeyBox& box, const RowWindow& row) const {
    Seen r;
    r.bias = tile_.head;
    NA_UNROLL
    for (int a = 0; a < kAxes; ++a) {
      const int32_t from = row.start[a] - box.first[a];
      r.axis[a] = low_bits(from + row.extent[a]) & ~low_bits(from);
      const int32_t kernel_size = p_.axis[a].kernel_size;
      r.bias = r.bias * (2 * kernel_size - 1) + box.first[a] - row.element[a] + kernel_size - 1;
    }
    return r;
  }

  // Adds the bias to the score of a query and a key, in units of log2; -inf where the query does not see the key.
  NA_DEVICE float placed(float score, const Seen& seen, int key) const {
    int32_t at[kAxes];
    split(key, S::box(), at);
    if ((seen.axis[0] >> at[0] & seen.axis[1] >> at[1] & seen.axis[2] >> at[2] & 1) == 0) return -INFINITY;
    if (p_.rel_pos_bias == nullptr) return score;
    const int32_t rows = at[0] * (2 * p_.axis[1].kernel_size - 1) + at[1];
    const int32_t index = seen.bias + rows * (2 * p_.axis[2].kernel_size - 1) + at[2];
    return score + dev::to_float(static_cast<const T*>(p_.rel_pos_bias)[index]) * kLog2E;
  }

  // Turns products into scores in units of log2.
  NA_DEVICE void place(float (&score)[kBoxKeys / 8][4], const KeyBox& box) const {
    const int lane = dev::thread() % 32;
    const float unit = p_.scale * kLog2E;
    NA_UNROLL
    for (int n = 0; n < kBoxKeys / 8; ++n) {
      NA_UNROLL
      for (int i = 0; i < 4; ++i) score[n][i] *= unit;
    }
    if (box.is_inside && (box.is_additional || p_.rel_pos_bias == nullptr)) return;
    if (box.is_additional) {
      const int32_t left = p_.additional - box.first[0] - lane % 4 * 2;
      NA_UNROLL
      for (int n = 0; n < kBoxKeys / 8; ++n) {
        NA_UNROLL
        for (int i = 0; i < 4; ++i) score[n][i] = n * 8 + i % 2 < left ? score[n][i] : -INFINITY;
      }
      return;
    }
    NA_UNROLL
    for (int half = 0; half < 2; ++half) {
      const Seen seen = seen_in(box, window(dev::thread() / 32 * 16 + half * 8 + lane / 4));
      NA_UNROLL
      for (int n = 0; n < kBoxKeys / 8; ++n) {
        NA_UNROLL
        for (int i = 0; i < 2; ++i) {
          float& s = score[n][2 * half + i];
          s = placed(s, seen, n * 8 + lane % 4 * 2 + i);
        }
      }
    }
  }

  NA_DEVICE void attend(const KeyBox& box, dev::Shared stage) {
    const int lane = dev::thread() % 32;
    float score[kBoxKeys / 8][4] = {};
    NA_UNROLL
    for (int k = 0; k < kDim / 16; ++k) {
      NA_UNROLL
      for (int pair = 0; pair < kBoxKeys / 16; ++pair) {
        uint32_t key[4];
        dev::load_matrices(key, Rows<kDim>::at(stage, pair * 16 + lane / 16 * 8 + lane % 8, 2 * k + lane / 8 % 2));
        dev::multiply<T>(score[2 * pair], query_[k], key[0], key[1]);
        dev::multiply<T>(score[2 * pair + 1], query_[k], key[2], key[3]);
      }
    }
    place(score, box);
    float peak[2] = {peak_[0], peak_[1]};
    NA_UNROLL
    for (int n = 0; n < kBoxKeys / 8; ++n) {
      NA_UNROLL
      for (int i = 0; i < 4; ++i) {
        if (score[n][i] > peak[i / 2]) peak[i / 2] = score[n][i];
      }
    }
    float base[2];
    NA_UNROLL
    for (int half = 0; half < 2; ++half) {
      NA_UNROLL
      for (int mask = 1; mask < 4; mask *= 2) {
        const float other = dev::shuffle_xor(peak[half], mask);
        if (other > peak[half]) peak[half] = other;
      }
      base[half] = peak[half] == -INFINITY ? 0.0F : peak[half];  // nothing seen yet
      const float fade = dev::exp2(peak_[half] - base[half]);
      peak_[half] = peak[half];
      total_[half] *= fade;
      NA_UNROLL
      for (int n = 0; n < kDim / 8; ++n) {
        output_[n][2 * half] *= fade;
        output_[n][2 * half + 1] *= fade;
      }
    }
    const dev::Shared values = values_of(stage);
    NA_UNROLL
    for (int pair = 0; pair < kBoxKeys / 16; ++pair) {
      uint32_t weight[4];
      NA_UNROLL
      for (int part = 0; part < 4; ++part) {  // (first eight keys, rows), (…, rows + 8), (next eight keys, …)
        const float* s = &score[2 * pair + part / 2][part % 2 * 2];
        const float low = dev::exp2(s[0] - base[part % 2]);
        const float high = dev::exp2(s[1] - base[part % 2]);
        total_[part % 2] += low + high;
        weight[part] = dev::pack<T>(low, high);
      }
      NA_UNROLL
      for (int c = 0; c < kDim / 16; ++c) {
        uint32_t value[4];
        dev::load_matrices_transposed(value, Rows<kDim>::at(values, pair * 16 + lane % 16, 2 * c + lane / 16));
        dev::multiply<T>(output_[2 * c], weight, value[0], value[1]);
        dev::multiply<T>(output_[2 * c + 1], weight, value[2], value[3]);
      }
    }
  }

  // Gathers each warp's rows in shared memory, so that whole pieces of 16 bytes are written.
  NA_DEVICE void write(dev::Shared to) {
    const int lane = dev::thread() % 32;
    const int first = dev::thread() / 32 * 16;
    NA_UNROLL
    for (int half = 0; half < 2; ++half) {
      NA_UNROLL
      for (int mask = 1; mask < 4; mask *= 2) total_[half] += dev::shuffle_xor(total_[half], mask);
      const float share = 1.0F / total_[half];
      const int row = first + half * 8 + lane / 4;
      NA_UNROLL
      for (int n = 0; n < kDim / 8; ++n) {
        dev::store_shared(Rows<kDim>::at(to, row, n) + static_cast<dev::Shared>(lane % 4 * 4),
                          dev::pack<T>(output_[n][2 * half] * share, output_[n][2 * half + 1] * share));
      }
      const int32_t at = query_position(row);
      if (p_.lse != nullptr && lane % 4 == 0 && at >= 0) {
        p_.lse[(tile_.image * p_.positions + at) * p_.heads + tile_.head] = peak_[half] * kLn2 + dev::log(total_[half]);
      }
    }
    dev::sync_warp();
    const int pieces = p_.value_dim / 8;
    T* image = static_cast<T*>(p_.output) + tile_.image * p_.positions * p_.heads * p_.value_dim;
    for (int n = lane; n < 16 * pieces; n += 32) {
      const int row = first + n / pieces;
      const int32_t at = query_position(row);
      if (at < 0) continue;
      T* out = image + (int64_t{at} * p_.heads + tile_.head) * p_.value_dim + n % pieces * 8;
      dev::store_global16(out, dev::load_shared16(Rows<kDim>::at(to, row, n % pieces)));
    }
  }

  const CudaProblem& p_;
  Tile& tile_;
  KeyBoxes& boxes_;
  uint32_t query_[kDim / 16][4];
  float output_[kDim / 8][4] = {};
  float peak_[2] = {-INFINITY, -INFINITY};
  float total_[2] = {};
};

}  // namespace na_deploy
