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
#include "scores.h"
#include "shape.h"
#include "tiles.h"

namespace na_deploy {

constexpr int kBoxKeys = 64;
constexpr int kPairs = kBoxKeys / 16;  // pairs of eight keys, as they are multiplied
constexpr uint32_t kPairBits = 0xFFFF;

// Shared memory: two stages of keys and values, the tile, its queries' windows, and the head's biases if they fit.
template <typename T, int kDim, typename S>
struct Layout {
  static_assert(S::kKeys == kBoxKeys, "a box has 64 keys");
  static_assert(S::kQueries % 16 == 0 && S::kQueries <= 2 * kBoxKeys, "a warp takes 16 queries; they pass a stage");
  static constexpr int kThreads = 2 * S::kQueries;
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
    write_rows<T, S>(p_, tile_, dev::thread() / 32 * 16, softmax_, output_,
                     [](int row, int piece) { return R::at(stage(0), row, piece); });
  }

 private:
  using L = Layout<T, kDim, S>;
  using R = Rows<L::kRowBytes>;
  using F = Fragments<T, L::kRowBytes>;
  static constexpr int kNumbers = 16 / static_cast<int>(sizeof(T));  // in a piece of 16 bytes
  static constexpr int kRowsAtOnce = L::kThreads / R::kPieces;

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

  NA_DEVICE void load_queries(dev::Shared to) const {
    const T* image = static_cast<const T*>(p_.query) + tile_.image * p_.positions * p_.query_position +
                     int64_t{tile_.head} * p_.head_dim;
    const int piece = dev::thread() % R::kPieces;
    NA_NO_UNROLL
    for (int row = dev::thread() / R::kPieces; row < S::kQueries; row += kRowsAtOnce) {
      const int32_t at = query_position<S>(p_, tile_, row);
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
    if (dev::thread() < S::kQueries) window(dev::thread()) = row_window<S>(p_, tile_, dev::thread());
  }

  // In units of log2, as scores are.
  NA_DEVICE void read_bias() const {
    for (int n = dev::thread(); n < bias_numbers_; n += L::kThreads) {
      shared_bias(n) = dev::to_float(head_bias()[n]) * kLog2E;
    }
  }

  NA_DEVICE static bool needs(const uint32_t (&words)[2], int pair) {
    return (words[pair / 2] >> (pair % 2 * 16) & kPairBits) != 0;
  }

  NA_DEVICE void attend(const KeyStep& step, dev::Shared stage) {
    const int lane = dev::thread() % 32;
    const bool is_map = !step.is_additional();
    // Where all is seen and nothing added, the factor is left to the exponential. A negative one turns maxima round.
    const bool is_plain =
        is_inside(tile_, S::box(), step, p_.additional) && (!is_map || p_.rel_pos_bias == nullptr) && p_.scale > 0.0F;
    const auto bias_of = [&](int32_t index) {
      return bias_numbers_ > 0 ? shared_bias(index) : dev::to_float(head_bias()[index]) * kLog2E;
    };
    Seen<S> seen;
    uint32_t needed[2] = {0xFFFFFFFFU, 0xFFFFFFFFU};  // by any row of the warp
    if (!is_plain && is_map) {
      const int row = dev::thread() / 32 * 16 + lane / 4;
      look<S>(p_, window(row), window(row + 8), step, seen);
      NA_UNROLL
      for (int w = 0; w < 2; ++w) needed[w] = dev::any_bits(seen_by_quad(seen, w));
    }
    const int32_t left = p_.additional - step.additional - lane % 4 * 2;

    float score[2 * kPairs][4];
    float highest[2] = {-INFINITY, -INFINITY};
    NA_UNROLL
    for (int pair = 0; pair < kPairs; ++pair) {
      if (!needs(needed, pair)) continue;
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
            place<S>(p_, score[n], n * 8, seen, p_.rel_pos_bias != nullptr, bias_of);
          } else {
            place_additional(p_, score[n], n * 8, left);
          }
        }
        NA_UNROLL
        for (int i = 0; i < 4; ++i) highest[i / 2] = larger(highest[i / 2], score[n][i]);
      }
    }
    const float unit = is_plain ? p_.scale * kLog2E : 1.0F;
    float base[2];
    float factor[2];
    if (softmax_.raise(highest, unit, base, factor)) fade(output_, factor);
    NA_UNROLL
    for (int pair = 0; pair < kPairs; ++pair) {
      if (!needs(needed, pair)) continue;
      softmax_.weigh(score[2 * pair], unit, base);
      softmax_.weigh(score[2 * pair + 1], unit, base);
      const typename F::Weights weights = F::weights(score[2 * pair], score[2 * pair + 1]);
      NA_UNROLL
      for (int c = 0; c < kDim / 16; ++c) {
        F::sum(output_[2 * c], output_[2 * c + 1], weights, values_of(stage), pair * 16, c, lane);
      }
    }
  }

  // A word of what the lane's rows see, in the places of the box: a lane's own bits are moved by its first key.
  NA_DEVICE static uint32_t seen_by_quad(const Seen<S>& seen, int word) {
    return (seen.row[0].word[word] | seen.row[1].word[word]) << (dev::thread() % 4 * 2);
  }

  const CudaProblem& p_;
  const TileGrid& grid_;
  const int32_t bias_numbers_;
  Tile& tile_;
  const T* keys_ = nullptr;  // of the tile's image and head
  const T* values_ = nullptr;
  typename F::Queries query_[F::kSteps];
  float output_[kDim / 8][4] = {};
  RunningSoftmax softmax_;
};

}  // namespace na_deploy
