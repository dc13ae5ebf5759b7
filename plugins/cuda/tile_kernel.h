// Fused neighborhood attention on tensor cores.
//
// A block of threads takes a tile of queries (one image, head and dilation group), 16 of them to a warp, and goes
// through boxes of 64 or 128 keys. A box is loaded once for the whole tile, from the tensors as they are, heads last;
// two boxes are in flight. Scores, mask, bias and an online softmax stay in registers, in float32. Boxes that no query
// sees are skipped, those that all see are not masked, and a warp skips each 16 keys that none of its queries sees.
#pragma once

#include <cmath>
#include <cstdint>

#include "device.h"
#include "fragments.h"
#include "problem.h"
#include "scores.h"
#include "shape.h"
#include "tiles.h"

namespace na_deploy::cuda {

constexpr uint32_t kPairBits = 0xFFFF;

// Shared memory: two stages of keys and values, the tile, its queries' windows, and the head's biases if they fit.
template <typename T, int kDim, typename S>
struct Layout {
  static_assert(S::kQueries % 16 == 0 && S::kQueries <= 2 * S::kKeys, "a warp takes 16 queries; they pass a stage");
  static constexpr int kThreads = 2 * S::kQueries;
  static constexpr int kRowBytes = kDim * static_cast<int>(sizeof(T));
  static constexpr int kPart = S::kKeys * kRowBytes;  // keys or values
  static constexpr int kTile = 4 * kPart;
  static constexpr int kWindows = kTile + static_cast<int>(sizeof(Tile));
  static constexpr int kBias = kWindows + static_cast<int>(sizeof(RowWindow)) * S::kQueries;
  static constexpr int bytes(int32_t shared_bias) { return kBias + 4 * shared_bias; }
  static_assert(kBias + 4 * kMostSharedBias <= 99 * 1024, "a block has 99 KB on the smaller devices");
};

template <typename T, int kDim, typename S>
class TileKernel {
 public:
  // `shared_bias`: the result of shared_bias_numbers().
  NA_DEVICE TileKernel(const CudaProblem& problem, const TileGrid& grid, int32_t shared_bias)
      : p_(problem), grid_(grid), shared_bias_(shared_bias), tile_(dev::shared_object<Tile>(L::kTile)) {}

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
    if (shared_bias_ > 0) SharedBias::at<S>(p_, L::kBias).template read<T>(p_, tile_.head);
    dev::wait_copies<1>();
    dev::sync();
    read_queries(stage(1));
    dev::sync();
    for (int turn = 0; !is_past(step, p_.additional); ++turn) {
      KeyStep following = step;
      advance(tile_, S::box(), S::kFirstAxis, following);
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
  static constexpr int kNumbers = 16 / static_cast<int>(sizeof(T));  // numbers in a piece of 16 bytes
  static constexpr int kPairs = S::kKeys / 16;                       // pairs of eight keys, as they are multiplied
  static constexpr int kWords = S::kKeys / 32;                       // words with a bit for each key
  using Loads = RowLoads<S, L::kRowBytes, L::kThreads>;

  NA_DEVICE static dev::Shared stage(int number) {
    return dev::shared_base() + static_cast<dev::Shared>(number * 2 * L::kPart);
  }
  NA_DEVICE static dev::Shared values_of(dev::Shared stage) { return stage + static_cast<dev::Shared>(L::kPart); }
  NA_DEVICE static RowWindow& window(int row) {
    return dev::shared_object<RowWindow>(L::kWindows + row * static_cast<int>(sizeof(RowWindow)));
  }

  NA_DEVICE void load_queries(dev::Shared to) const {
    const int32_t at = origin_ + Loads::offset(S::tile(), distance_);
    const T* from = static_cast<const T*>(p_.query) + (tile_.image * p_.positions + at) * p_.query_position +
                    int64_t{tile_.head} * p_.head_dim + Loads::piece() * kNumbers;
    const dev::Shared place = R::at(to, Loads::row(), Loads::piece());
    const bool has_piece = Loads::piece() * kNumbers < p_.head_dim;
    Loads::each(S::tile(), tile_.first, tile_.size, distance_, [&](dev::Shared row, int32_t more, bool inside) {
      dev::copy_ahead(place + row, from + int64_t{more} * p_.query_position, inside && has_piece);
    });
  }

  NA_DEVICE void read_queries(dev::Shared from) {
    const int lane = dev::thread() % 32;
    const int row = dev::thread() / 32 * 16 + lane % 16;
    NA_UNROLL
    for (int k = 0; k < F::kSteps; ++k) F::read_queries(query_[k], R::at(from, row, 2 * k + lane / 16));
  }

  // Finds the beginning of the tile's dilation group, and the first key that this thread would load there.
  NA_DEVICE void find_keys() {
    NA_UNROLL
    for (int a = S::kFirstAxis; a < kAxes; ++a) {
      distance_[a] = p_.distance[a] * p_.axis[a].dilation;
      origin_ += p_.distance[a] * tile_.group[a];
      end_[a] = tile_.range[a].highest_end;
    }
    const int32_t key_head = quotient(tile_.head, p_.by_heads_per_key);
    const int64_t at = tile_.image * p_.positions + origin_ + Loads::offset(S::box(), distance_);
    const int piece = Loads::piece() * kNumbers;
    keys_ = static_cast<const T*>(p_.key) + at * p_.key_position + int64_t{key_head} * p_.head_dim + piece;
    values_ = static_cast<const T*>(p_.value) + at * p_.value_position + int64_t{key_head} * p_.value_dim + piece;
    has_key_ = piece < p_.head_dim;
    has_value_ = piece < p_.value_dim;
  }

  NA_DEVICE void load_step(const KeyStep& step, dev::Shared stage) const {
    if (step.is_additional()) {
      load_additional(step.additional, stage);
    } else if (p_.padding_key != nullptr) {
      load_padded_box(step, stage);
    } else {
      load_box(step, stage);
    }
  }

  // Loads a box; zeros replace keys past the last one that any query sees.
  NA_DEVICE void load_box(const KeyStep& step, dev::Shared stage) const {
    const dev::Shared place = R::at(stage, Loads::row(), Loads::piece());
    Loads::each(S::box(), step.first, end_, distance_, [&](dev::Shared row, int32_t at, bool inside) {
      dev::copy_ahead(place + row, keys_ + int64_t{at} * p_.key_position, inside && has_key_);
      dev::copy_ahead(values_of(place) + row, values_ + int64_t{at} * p_.value_position, inside && has_value_);
    });
  }

  // Loads this thread's piece of a row from the given addresses.
  NA_DEVICE void load_row(dev::Shared stage, int row, const T* key, const T* value, bool inside) const {
    const int piece = Loads::piece();
    dev::copy_ahead(R::at(stage, row, piece), key, inside && has_key_);
    dev::copy_ahead(R::at(values_of(stage), row, piece), value, inside && has_value_);
  }

  // Loads a box where windows may reach past the map: every key there is the padding key.
  NA_DEVICE void load_padded_box(const KeyStep& step, dev::Shared stage) const {
    const int piece = Loads::piece();
    const int64_t channel = tile_.head * p_.head_dim + piece * kNumbers;
    NA_NO_UNROLL
    for (int row = Loads::row(); row < S::kKeys; row += Loads::kAtOnce) {
      int32_t at[kAxes];
      split(row, S::box(), at);
      int32_t position = -Loads::offset(S::box(), distance_);
      bool seen = true;
      bool behind = false;
      NA_UNROLL
      for (int a = S::kFirstAxis; a < kAxes; ++a) {
        const int32_t element = step.first[a] + at[a];
        seen = seen && element < end_[a];
        behind = behind || element >= tile_.size[a];
        position += element * distance_[a];
      }
      const T* key = keys_ + int64_t{position} * p_.key_position;
      const T* value = values_ + int64_t{position} * p_.value_position;
      if (behind) {
        key = static_cast<const T*>(p_.padding_key) + channel;
        value = static_cast<const T*>(p_.padding_value) + channel;
      }
      load_row(stage, row, key, value, seen);
    }
  }

  NA_DEVICE void load_additional(int32_t first, dev::Shared stage) const {
    const int32_t key_head = quotient(tile_.head, p_.by_heads_per_key);
    const int piece = Loads::piece();
    NA_NO_UNROLL
    for (int row = Loads::row(); row < S::kKeys; row += Loads::kAtOnce) {
      const int64_t at = (tile_.image * p_.additional + first + row) * p_.key_heads + key_head;
      const T* key = static_cast<const T*>(p_.additional_key) + at * p_.head_dim + piece * kNumbers;
      const T* value = static_cast<const T*>(p_.additional_value) + at * p_.value_dim + piece * kNumbers;
      load_row(stage, row, key, value, first + row < p_.additional);
    }
  }

  NA_DEVICE void find_windows() const {
    if (dev::thread() < S::kQueries) window(dev::thread()) = row_window<S>(p_, tile_, dev::thread());
  }

  NA_DEVICE static bool needs(const uint32_t (&words)[kWords], int pair) {
    return (words[pair / 2] >> (pair % 2 * 16) & kPairBits) != 0;
  }

  // Computes the products with a box's keys that the warp needs; `place(score, key)` turns them into scores.
  template <typename Place>
  NA_DEVICE void score_box(dev::Shared stage, const uint32_t (&needed)[kWords], float (&score)[2 * kPairs][4],
                           float (&highest)[2], const Place& place) const {
    const int lane = dev::thread() % 32;
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
        place(score[n], n * 8);
        NA_UNROLL
        for (int i = 0; i < 4; ++i) highest[i / 2] = dev::max(highest[i / 2], score[n][i]);
      }
    }
  }

  // Computes the scores of a box where some keys are not seen or there is a bias.
  NA_DEVICE void score_masked(const KeyStep& step, dev::Shared stage, uint32_t (&needed)[kWords],
                              float (&score)[2 * kPairs][4], float (&highest)[2]) const {
    if (step.is_additional()) {
      score_box(stage, needed, score, highest, [&](float (&own)[4], int key) { place_additional(p_, own, key, step); });
      return;
    }
    const int row = dev::thread() / 32 * 16 + dev::thread() % 32 / 4;
    const Seen<S> seen[2] = {look<S>(p_, window(row), step), look<S>(p_, window(row + 8), step)};
    NA_UNROLL
    for (int w = 0; w < kWords; ++w) {
      // Shifts a lane's bits back by its first key; the first of four lanes has them all.
      needed[w] = dev::any_bits((seen[0].keys.word[w] | seen[1].keys.word[w]) << (dev::thread() % 4 * 2));
    }
    if (p_.rel_pos_bias == nullptr) {
      score_box(stage, needed, score, highest, placing<false>(seen, NoBias{}));
    } else if (shared_bias_ > 0) {
      score_box(stage, needed, score, highest, placing<true>(seen, SharedBias::at<S>(p_, L::kBias)));
    } else {
      score_box(stage, needed, score, highest, placing<true>(seen, StoredBias<T>(p_, tile_.head)));
    }
  }

  template <bool kHasBias, typename BiasOf>
  NA_DEVICE auto placing(const Seen<S> (&seen)[2], const BiasOf& bias_of) const {
    return [&p = p_, &seen, bias_of](float (&score)[4], int key) {
      place<S, kHasBias>(p, score, 0, key, seen[0], bias_of);
      place<S, kHasBias>(p, score, 1, key, seen[1], bias_of);
    };
  }

  NA_DEVICE void attend(const KeyStep& step, dev::Shared stage) {
    const int lane = dev::thread() % 32;
    const bool plain = is_plain<S>(p_, tile_, step);
    uint32_t needed[kWords];  // keys that any row of the warp sees
    NA_UNROLL
    for (uint32_t& word : needed) word = 0xFFFFFFFFU;
    float score[2 * kPairs][4];
    float highest[2] = {-INFINITY, -INFINITY};
    if (plain) {
      score_box(stage, needed, score, highest, [](float (&)[4], int) {});
    } else {
      score_masked(step, stage, needed, score, highest);
      uint32_t some = 0;
      NA_UNROLL
      for (const uint32_t word : needed) some |= word;
      if (some == 0) return;
    }
    const float unit = plain ? p_.scale * kLog2E : 1.0F;
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

  const CudaProblem& p_;
  const TileGrid& grid_;
  const int32_t shared_bias_;
  Tile& tile_;
  int32_t origin_ = 0;       // position of the dilation group's first element
  int32_t distance_[kAxes];  // positions between neighbours of the group
  int32_t end_[kAxes];       // one past the last key that a query sees
  const T* keys_ = nullptr;  // this thread's first key of a box at the group's beginning
  const T* values_ = nullptr;
  bool has_key_ = false;  // false past a head's last channel: zeros are loaded
  bool has_value_ = false;
  typename F::Queries query_[F::kSteps];
  float output_[kDim / 8][4] = {};
  RunningSoftmax softmax_;
};

}  // namespace na_deploy::cuda
