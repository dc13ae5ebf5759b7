// Fused neighborhood attention on tensor cores.
//
// A block of threads takes a tile of queries (one image, head and dilation group), 16 of them to a warp, and goes
// through boxes of 64 keys: loaded once for the whole tile from the tensors as they are, heads last, two boxes in
// flight; scores, mask, bias and an online softmax in registers in float32. Boxes that no query sees do not come up,
// those that all see are not masked, and a warp passes over each 16 keys that none of its queries sees. Nothing of the
// size of scores leaves the registers.
#pragma once

#include <cmath>
#include <cstdint>

#include "device.h"
#include "fragments.h"
#include "problem.h"
#include "shape.h"
#include "tiles.h"

namespace na_deploy {

constexpr float kLog2E = 1.44269504F;
constexpr float kLn2 = 0.693147181F;
constexpr int kPairs = kBoxKeys / 16;  // pairs of eight keys, as they are multiplied
constexpr uint32_t kPairBits = 0xFFFF;

// Shared memory: two stages of keys and values, the tile, its queries' windows, and the head's biases if they fit.
template <typename T, int kDim, typename S>
struct Layout {
  static constexpr int kRowBytes = kDim * static_cast<int>(sizeof(T));
  static constexpr int kPart = kBoxKeys * kRowBytes;  // keys or values
  static constexpr int kTile = 4 * kPart;
  static constexpr int kWindows = kTile + static_cast<int>(sizeof(Tile));
  static constexpr int kBias = kWindows + static_cast<int>(sizeof(RowWindow)) * S::kQueries;
  static constexpr int kMostBias = 4096;  // numbers; more stay in global memory

  static int32_t bias_numbers(const CudaProblem& p) {
    if (p.rel_pos_bias == nullptr) return 0;
    const int64_t numbers = int64_t{p.bias_distance[0]} * (2 * p.axis[0].kernel_size - 1);
    return numbers <= kMostBias ? static_cast<int32_t>(numbers) : 0;
  }
  static int bytes(int32_t bias_numbers) { return kBias + 4 * bias_numbers; }
};

template <typename T, int kDim, typename S>
class TileKernel {
 public:
  // `bias_numbers`: of a head, if they lie in shared memory; else 0.
  NA_DEVICE TileKernel(const CudaProblem& problem, const TileGrid& grid, int32_t bias_numbers)
      : p_(problem), grid_(grid), bias_numbers_(bias_numbers), tile_(dev::shared_object<Tile>(L::kTile)) {}

  NA_DEVICE void run() {
    if (dev::thread() == 0) tile_ = tile_at(p_, grid_, S::tile(), static_cast<int32_t>(dev::block()));
    dev::sync();
    if (tile_.is_empty) return;
    find_keys();
    KeyStep step = first_step(tile_);
    load_queries(stage(1));
    dev::commit_copies();
    load_step(step, stage(0));
    dev::commit_copies();
    find_windows();
    read_bias();
    dev::wait_copies<1>();
    dev::sync();
    read_queries(stage(1));
    dev::sync();
    for (int turn = 0; !is_past(step, p_.additional); ++turn) {
      KeyStep following = step;
      advance(tile_, S::box(), following);
      if (!is_past(following, p_.additional)) load_step(following, stage((turn + 1) % 2));
      dev::commit_copies();
      dev::wait_copies<1>();
      dev::sync();
      attend(step, stage(turn % 2));
      dev::sync();
      step = following;
    }
    write(stage(0));
  }

 private:
  using L = Layout<T, kDim, S>;
  using R = Rows<L::kRowBytes>;
  using F = Fragments<T, L::kRowBytes>;
  static constexpr int kNumbers = 16 / static_cast<int>(sizeof(T));  // in a piece of 16 bytes
  static constexpr int kRowsAtOnce = S::kThreads / R::kPieces;

  NA_DEVICE static dev::Shared stage(int number) {
    return dev::shared_base() + static_cast<dev::Shared>(number * 2 * L::kPart);
  }
  NA_DEVICE static dev::Shared values_of(dev::Shared stage) { return stage + static_cast<dev::Shared>(L::kPart); }
  NA_DEVICE static RowWindow& window(int row) {
    return dev::shared_object<RowWindow>(L::kWindows + row * static_cast<int>(sizeof(RowWindow)));
  }
  NA_DEVICE static float& shared_bias(int index) { return dev::shared_object<float>(L::kBias + 4 * index); }
  NA_DEVICE const T* head_bias() const {
    return static_cast<const T*>(p_.rel_pos_bias) +
           int64_t{tile_.head} * p_.bias_distance[0] * (2 * p_.axis[0].kernel_size - 1);
  }

  // Query `row` of the tile: its flat position in the image, or -1 past the group's end.
  NA_DEVICE int32_t query_position(int row) const {
    int32_t coordinate[kAxes];
    split(row, S::tile(), coordinate);
    int32_t at = 0;
    NA_UNROLL
    for (int a = S::kFirstAxis; a < kAxes; ++a) {
      const int32_t element = tile_.first[a] + coordinate[a];
      if (element >= tile_.size[a]) return -1;
      at = at * p_.axis[a].length + element * p_.axis[a].dilation + tile_.group[a];
    }
    return at;
  }

  NA_DEVICE void load_queries(dev::Shared to) const {
    const T* image = static_cast<const T*>(p_.query) + tile_.image * p_.positions * p_.query_position +
                     int64_t{tile_.head} * p_.head_dim;
    const int piece = dev::thread() % R::kPieces;
    NA_NO_UNROLL
    for (int row = dev::thread() / R::kPieces; row < S::kQueries; row += kRowsAtOnce) {
      const int32_t at = query_position(row);
      const bool inside = at >= 0 && piece * kNumbers < p_.head_dim;
      const T* from = image + int64_t{at} * p_.query_position + piece * kNumbers;
      dev::copy_ahead(R::at(to, row, piece), inside ? from : p_.query, inside);
    }
  }

  NA_DEVICE void read_queries(dev::Shared from) {
    const int lane = dev::thread() % 32;
    const int row = dev::thread() / 32 * 16 + lane % 16;
    NA_UNROLL
    for (int k = 0; k < F::kSteps; ++k) F::read_queries(query_[k], R::at(from, row, 2 * k + lane / 16));
  }

  NA_DEVICE void find_keys() {
    const int32_t key_head = quotient(tile_.head, p_.by_heads_per_key);
    const int64_t image = tile_.image * p_.positions;
    keys_ = static_cast<const T*>(p_.key) + image * p_.key_position + int64_t{key_head} * p_.head_dim;
    values_ = static_cast<const T*>(p_.value) + image * p_.value_position + int64_t{key_head} * p_.value_dim;
  }

  NA_DEVICE void load_step(const KeyStep& step, dev::Shared stage) const {
    if (step.is_additional()) {
      load_additional(step.additional, stage);
    } else {
      load_box(step, stage);
    }
  }

  NA_DEVICE void load_row(int row, int piece, const T* key, const T* value, bool inside, dev::Shared stage) const {
    const bool has_key = inside && piece * kNumbers < p_.head_dim;
    const bool has_value = inside && piece * kNumbers < p_.value_dim;
    dev::copy_ahead(R::at(stage, row, piece), has_key ? key + piece * kNumbers : keys_, has_key);
    dev::copy_ahead(R::at(values_of(stage), row, piece), has_value ? value + piece * kNumbers : values_, has_value);
  }

  // Keys past the last one that any query sees are not loaded; zeros stand for them.
  NA_DEVICE void load_box(const KeyStep& step, dev::Shared stage) const {
    NA_UNROLL
    for (int row = dev::thread() / R::kPieces; row < kBoxKeys; row += kRowsAtOnce) {
      int32_t coordinate[kAxes];
      split(row, S::box(), coordinate);
      int32_t at = 0;
      bool inside = true;
      NA_UNROLL
      for (int a = S::kFirstAxis; a < kAxes; ++a) {
        const int32_t element = step.first[a] + coordinate[a];
        inside = inside && element < tile_.range[a].highest_end;
        at = at * p_.axis[a].length + element * p_.axis[a].dilation + tile_.group[a];
      }
      load_row(row, dev::thread() % R::kPieces, keys_ + int64_t{at} * p_.key_position,
               values_ + int64_t{at} * p_.value_position, inside, stage);
    }
  }

  NA_DEVICE void load_additional(int32_t first, dev::Shared stage) const {
    const int32_t key_head = quotient(tile_.head, p_.by_heads_per_key);
    NA_NO_UNROLL
    for (int row = dev::thread() / R::kPieces; row < kBoxKeys; row += kRowsAtOnce) {
      const int64_t at = (tile_.image * p_.additional + first + row) * p_.key_heads + key_head;
      load_row(row, dev::thread() % R::kPieces, static_cast<const T*>(p_.additional_key) + at * p_.head_dim,
               static_cast<const T*>(p_.additional_value) + at * p_.value_dim, first + row < p_.additional, stage);
    }
  }

  NA_DEVICE void find_windows() const {
    const int row = dev::thread();
    if (row >= S::kQueries) return;
    int32_t coordinate[kAxes];
    split(row, S::tile(), coordinate);
    RowWindow own;
    own.bias = 0;
    NA_UNROLL
    for (int a = 0; a < kAxes; ++a) {
      const AxisSizes& axis = p_.axis[a];
      const int32_t element = smaller(tile_.first[a] + coordinate[a], tile_.size[a] - 1);
      const BasicWindow<int32_t> seen = axis_window(axis, tile_.size[a], element);
      own.start[a] = seen.start;
      own.end[a] = seen.end;
      own.bias += (axis.kernel_size - 1 - element) * p_.bias_distance[a];
    }
    window(row) = own;
  }

  // In units of log2, as scores are.
  NA_DEVICE void read_bias() const {
    for (int n = dev::thread(); n < bias_numbers_; n += S::kThreads) {
      shared_bias(n) = dev::to_float(head_bias()[n]) * kLog2E;
    }
  }

  // What this lane's two rows, and its warp, see of a step.
  struct Seen {
    KeyBits row[2];  // bit 0 is the key of the lane's first score
    int32_t bias[2];
    uint32_t warp[2];
  };

  NA_DEVICE static bool needs(const uint32_t (&words)[2], int pair) {
    return (words[pair / 2] >> (pair % 2 * 16) & kPairBits) != 0;
  }

  NA_DEVICE void look(const KeyStep& step, Seen& seen) const {
    const int lane = dev::thread() % 32;
    int32_t first[kAxes];
    split(lane % 4 * 2, S::box(), first);
    int32_t bias = 0;
    NA_UNROLL
    for (int a = S::kFirstAxis; a < kAxes; ++a) bias += (step.first[a] + first[a]) * p_.bias_distance[a];
    seen.warp[0] = seen.warp[1] = 0;
    NA_UNROLL
    for (int half = 0; half < 2; ++half) {
      const RowWindow& row = window(dev::thread() / 32 * 16 + half * 8 + lane / 4);
      const KeyBits keys = seen_keys<S>(row, step.first);
      seen.bias[half] = row.bias + bias;
      NA_UNROLL
      for (int w = 0; w < 2; ++w) {
        seen.warp[w] |= keys.word[w];
        seen.row[half].word[w] = keys.word[w] >> (lane % 4 * 2);
      }
    }
    seen.warp[0] = dev::any_bits(seen.warp[0]);
    seen.warp[1] = dev::any_bits(seen.warp[1]);
  }

  // Where the bias of key `key` of a box, a multiple of eight, lies from that of key 0.
  NA_DEVICE int32_t bias_from_first(int key) const {
    int32_t at[kAxes];
    split(key, S::box(), at);
    int32_t distance = at[2];
    if constexpr (S::kFirstAxis < 2) distance += at[1] * p_.bias_distance[1];
    if constexpr (S::kFirstAxis < 1) distance += at[0] * p_.bias_distance[0];
    return distance;
  }

  // Scores in units of log2, with bias; -inf for keys that are not seen.
  NA_DEVICE void place(float (&score)[4], int key, const Seen& seen) const {
    const float unit = p_.scale * kLog2E;
    const int32_t distance = bias_from_first(key);
    NA_UNROLL
    for (int i = 0; i < 4; ++i) {
      const int half = i / 2;
      const bool sees = (seen.row[half].word[key / 32] >> (key % 32 + i % 2) & 1) != 0;
      const int32_t index = seen.bias[half] + distance + i % 2;
      float added = sees ? 0.0F : -INFINITY;
      if (bias_numbers_ > 0) {
        if (sees) added = shared_bias(index);
      } else if (p_.rel_pos_bias != nullptr && sees) {
        added = dev::to_float(head_bias()[index]) * kLog2E;
      }
      score[i] = score[i] * unit + added;
    }
  }

  NA_DEVICE void attend(const KeyStep& step, dev::Shared stage) {
    const int lane = dev::thread() % 32;
    // Where all is seen and nothing added, the factor is left to the exponential. A negative one turns maxima round.
    const bool is_plain = is_inside(tile_, S::box(), step, p_.additional) &&
                          (step.is_additional() || p_.rel_pos_bias == nullptr) && p_.scale > 0.0F;
    const bool is_map = !step.is_additional();
    Seen seen;
    seen.warp[0] = seen.warp[1] = 0xFFFFFFFFU;
    if (!is_plain && is_map) look(step, seen);
    const int32_t left = p_.additional - step.additional - lane % 4 * 2;

    float score[2 * kPairs][4];
    float peak[2] = {-INFINITY, -INFINITY};
    NA_UNROLL
    for (int pair = 0; pair < kPairs; ++pair) {
      if (!needs(seen.warp, pair)) continue;
      NA_UNROLL
      for (int i = 0; i < 4; ++i) score[2 * pair][i] = score[2 * pair + 1][i] = 0.0F;
      NA_UNROLL
      for (int k = 0; k < F::kSteps; ++k) {
        F::score(score[2 * pair], score[2 * pair + 1], query_[k],
                 R::at(stage, pair * 16 + lane / 16 * 8 + lane % 8, 2 * k + lane / 8 % 2));
      }
      NA_UNROLL
      for (int n = 2 * pair; n < 2 * pair + 2; ++n) {
        if (!is_plain) {
          if (is_map) {
            place(score[n], n * 8, seen);
          } else {
            NA_UNROLL
            for (int i = 0; i < 4; ++i) {
              score[n][i] = n * 8 + i % 2 < left ? score[n][i] * (p_.scale * kLog2E) : -INFINITY;
            }
          }
        }
        NA_UNROLL
        for (int i = 0; i < 4; ++i) peak[i / 2] = larger(peak[i / 2], score[n][i]);
      }
    }
    const float unit = is_plain ? p_.scale * kLog2E : 1.0F;
    float base[2];
    fade(peak, unit, base);
    NA_UNROLL
    for (int pair = 0; pair < kPairs; ++pair) {
      if (!needs(seen.warp, pair)) continue;
      NA_UNROLL
      for (int n = 2 * pair; n < 2 * pair + 2; ++n) {
        NA_UNROLL
        for (int i = 0; i < 4; ++i) {
          score[n][i] = dev::exp2(score[n][i] * unit - base[i / 2]);
          total_[i / 2] += score[n][i];
        }
      }
      const typename F::Weights weights = F::weights(score[2 * pair], score[2 * pair + 1]);
      NA_UNROLL
      for (int c = 0; c < kDim / 16; ++c) {
        F::sum(output_[2 * c], output_[2 * c + 1], weights, values_of(stage), pair * 16, c, lane);
      }
    }
  }

  // Takes a step's largest scores, times `unit`, into the running ones, and gives what to subtract from scores.
  NA_DEVICE void fade(float (&peak)[2], float unit, float (&base)[2]) {
    float factor[2];
    NA_UNROLL
    for (int half = 0; half < 2; ++half) {
      peak[half] *= unit;
      NA_UNROLL
      for (int mask = 1; mask < 4; mask *= 2) peak[half] = larger(peak[half], dev::shuffle_xor(peak[half], mask));
      peak[half] = larger(peak[half], peak_[half]);
      base[half] = peak[half] == -INFINITY ? 0.0F : peak[half];  // nothing seen yet
      factor[half] = dev::exp2(peak_[half] - base[half]);
    }
    const bool changes = peak[0] != peak_[0] || peak[1] != peak_[1];
    peak_[0] = peak[0];
    peak_[1] = peak[1];
    if (!dev::any(changes)) return;
    NA_UNROLL
    for (int half = 0; half < 2; ++half) {
      total_[half] *= factor[half];
      NA_UNROLL
      for (int n = 0; n < kDim / 8; ++n) {
        output_[n][2 * half] *= factor[half];
        output_[n][2 * half + 1] *= factor[half];
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
        const float low = output_[n][2 * half] * share;
        const float high = output_[n][2 * half + 1] * share;
        const int byte = (n * 8 + lane % 4 * 2) * static_cast<int>(sizeof(T));
        dev::store_two<T>(R::at(to, row, byte / 16) + static_cast<dev::Shared>(byte % 16), low, high);
      }
      const int32_t at = query_position(row);
      if (p_.lse != nullptr && lane % 4 == 0 && at >= 0) {
        p_.lse[(tile_.image * p_.positions + at) * p_.heads + tile_.head] = peak_[half] * kLn2 + dev::log(total_[half]);
      }
    }
    dev::sync_warp();
    T* image = static_cast<T*>(p_.output) + (tile_.image * p_.positions * p_.heads + tile_.head) * p_.value_dim;
    const int piece = lane % R::kPieces;
    if (piece * kNumbers >= p_.value_dim) return;
    for (int row = first + lane / R::kPieces; row < first + 16; row += 32 / R::kPieces) {
      const int32_t at = query_position(row);
      if (at < 0) continue;
      dev::store_global16(image + int64_t{at} * p_.heads * p_.value_dim + piece * kNumbers,
                          dev::load_shared16(R::at(to, row, piece)));
    }
  }

  const CudaProblem& p_;
  const TileGrid& grid_;
  const int32_t bias_numbers_;
  Tile& tile_;
  const T* keys_ = nullptr;  // of the tile's image and head
  const T* values_ = nullptr;
  typename F::Queries query_[F::kSteps];
  float output_[kDim / 8][4] = {};
  float peak_[2] = {-INFINITY, -INFINITY};
  float total_[2] = {};
};

}  // namespace na_deploy
