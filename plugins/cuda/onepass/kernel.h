// Fused neighborhood attention with small windows, bound by memory.
//
// A block keeps its tile of queries (one head and dilation group) and takes images in turn. All keys that the tile
// sees are in shared memory at once, while those of the next image are on their way. A warp takes 16 queries through
// the keys of its own hull in one pass: no online softmax, no boxes. Bias and mask do not depend on the image: they
// are worked out once, and products start from them (bias / scale, -infinity). Sums of weights are a product with
// ones.
#pragma once

#include <cmath>
#include <cstdint>
#include <type_traits>

#include "bias.h"
#include "device.h"
#include "onepass/places.h"
#include "onepass/plan.h"
#include "problem.h"
#include "scores.h"
#include "shape.h"

namespace na_deploy::onepass {

template <typename T, int kDim, int kChunks>
class OnePassKernel {
 public:
  NA_DEVICE OnePassKernel(const CudaProblem& problem, const Plan& plan)
      : p_(problem), plan_(plan), room_(room_of(plan, kRowBytes, kSharedStart)) {}

  NA_DEVICE void run() {
    auto& tile = dev::shared_object<Tile>(room_.tile);
    if (dev::thread() == 0) tile = tile_at(p_, plan_.grid, plan_.tile, static_cast<int32_t>(dev::block()));
    find_keys_of_hulls();
    dev::sync();
    if (tile.is_empty) return;
    const auto batch = static_cast<int32_t>(p_.batch);
    const auto last = batch - plan_.images;
    const int32_t step = plan_.images * plan_.shares;
    auto image = static_cast<int32_t>(tile.image) * plan_.images;
    const Corner corner = corner_of(plan_, tile);
    begin(tile, corner);
    load_constants(tile, corner);
    load(smaller(image, last), stage(0));
    dev::commit_copies();
    find_start(tile.head);
    const bool ahead = plan_.stages == 2;
    for (int turn = 0; image < batch; ++turn, image += step) {
      const dev::Shared own = stage(ahead ? turn % 2 : 0);
      const bool goes_on = image + step < batch;
      if (ahead && goes_on) load(smaller(image + step, last), stage((turn + 1) % 2));
      dev::commit_copies();
      if (ahead) {
        dev::wait_copies<1>();
      } else {
        dev::wait_copies<0>();
      }
      dev::sync();
      attend(own, smaller(image, last));
      dev::sync();
      if (!ahead && goes_on) load(smaller(image + step, last), own);
    }
  }

 private:
  static constexpr int kRowBytes = kDim * 2;
  using R = Rows<kRowBytes>;
  static constexpr int kPieces = R::kPieces;
  static constexpr int kSteps = kDim / 16;  // of 16 channels
  static constexpr int kFew = few_chunks(kChunks);
  static constexpr bool kSharedStart = !start_is_register(kDim, kChunks);
  static constexpr int kOwn = kDim / 16;             // pieces of queries that a lane brings, and takes away
  static constexpr int kOwnRows = 32 / kPieces;      // rows of a warp at a time
  static constexpr int kStartBytes = 2 * 512;        // of a chunk and warp
  static constexpr uint32_t kOnes = std::is_same_v<T, dev::Half> ? 0x3C003C00U : 0x3F803F80U;

  struct Start {
    float at[4];
  };

  NA_DEVICE static int lane() { return dev::thread() % 32; }
  NA_DEVICE static int warp() { return dev::thread() / 32; }
  NA_DEVICE dev::Shared stage(int number) const {
    return dev::shared_base() + static_cast<dev::Shared>(number * room_.stage);
  }
  NA_DEVICE const KeyPlace& key_of_hull(int number) const {
    return dev::shared_object<KeyPlace>(room_.list + number * static_cast<int>(sizeof(KeyPlace)));
  }
  NA_DEVICE RowSeen& seen(int row) const {
    return dev::shared_object<RowSeen>(room_.seen + (warp() * kRowQueries + row) * static_cast<int>(sizeof(RowSeen)));
  }
  NA_DEVICE Start& shared_start(int chunk, int half) const {
    return dev::shared_object<Start>(room_.start + (warp() * kChunks + chunk) * kStartBytes + half * 512 + lane() * 16);
  }
  // Positions of the four rows that the thread loads in trip `trip`.
  NA_DEVICE int positions_at(int trip) const {
    return room_.positions + (trip * rows_at_once(plan_.warps, kRowBytes) + dev::thread() / kPieces) * 16;
  }

  NA_DEVICE void find_keys_of_hulls() const {
    for (int n = dev::thread(); n < kChunks * kChunk; n += dev::threads()) {
      dev::shared_object<KeyPlace>(room_.list + n * static_cast<int>(sizeof(KeyPlace))) = key_place(p_, plan_, n);
    }
  }

  // Where the thread's pieces come from and go to, image 0, and the warp's hull.
  NA_DEVICE void begin(const Tile& tile, const Corner& corner) {
    const int piece = dev::thread() % kPieces * 8;
    const int32_t key_head = quotient(tile.head, p_.by_heads_per_key);
    has_piece_ = piece < p_.head_dim;
    query_ = static_cast<const T*>(p_.query) + int64_t{tile.head} * p_.head_dim + piece;
    key_ = static_cast<const T*>(p_.key) + int64_t{key_head} * p_.head_dim + piece;
    value_ = static_cast<const T*>(p_.value) + int64_t{key_head} * p_.head_dim + piece;
    output_ = static_cast<T*>(p_.output) + int64_t{tile.head} * p_.head_dim + piece;
    place_ = R::at(0, dev::thread() / kPieces, dev::thread() % kPieces);
    head_ = tile.head;
    const WarpHull hull = find_rows(p_, plan_, tile, corner, &dev::shared_object<RowSeen>(room_.seen));
    all_chunks_ = hull.chunks > kFew;
    NA_UNROLL
    for (int c = 0; c < kChunks; ++c) {
      const int row = hull.row + key_of_hull(c * kChunk + lane() / 16 * 8 + lane() % 8).slot;
      keys_at_[c] = R::at(0, smaller(row, plan_.rows - 1), lane() / 8 % 2);
    }
    NA_UNROLL
    for (int i = 0; i < kOwn; ++i) own_[i] = seen(lane() / kPieces + i * kOwnRows).position;
  }

  // Works out where the thread's rows come from, and brings those that are the same for all images.
  NA_DEVICE void load_constants(const Tile& tile, const Corner& corner) const {
    const int at_once = rows_at_once(plan_.warps, kRowBytes);
    const int row = dev::thread() / kPieces;
    const int piece = dev::thread() % kPieces;
    const T* key = static_cast<const T*>(p_.padding_key) + head_ * p_.head_dim + piece * 8;
    const T* value = static_cast<const T*>(p_.padding_value) + head_ * p_.head_dim + piece * 8;
    NA_NO_UNROLL
    for (int trip = 0; trip * kTrip * at_once < plan_.rows; ++trip) {
      auto* const positions = &dev::shared_object<int32_t>(positions_at(trip));
      NA_NO_UNROLL
      for (int i = piece; i < kTrip; i += kPieces) {
        const int32_t number = (trip * kTrip + i) * at_once + row;
        positions[i] = key_position(p_, plan_, tile, corner, number);
      }
      dev::sync_warp();
      NA_NO_UNROLL
      for (int i = 0; i < kTrip; ++i) {
        const int32_t number = (trip * kTrip + i) * at_once + row;
        if ((positions[i] >= 0 && has_piece_) || number >= plan_.rows) continue;
        for (int n = 0; n < plan_.stages; ++n) {
          const dev::Shared to = R::at(stage(n), number, piece);
          dev::copy_ahead(to, key, has_piece_ && positions[i] == kPadding);
          dev::copy_ahead(to + static_cast<dev::Shared>(room_.values), value, has_piece_ && positions[i] == kPadding);
        }
      }
    }
    for (int i = 0; i < kOwn && !has_piece_; ++i) {
      for (int n = 0; n < plan_.stages; ++n) dev::copy_ahead(own_at(stage(n), i), query_, false);
    }
  }

  NA_DEVICE dev::Shared own_at(dev::Shared stage, int i) const {
    return R::at(stage + static_cast<dev::Shared>(room_.queries),
                 warp() * kRowQueries + lane() / kPieces + i * kOwnRows, lane() % kPieces);
  }

  NA_DEVICE static const void* row_at(const T* from, int32_t position, int32_t distance) {
    return from + static_cast<uint64_t>(static_cast<uint32_t>(position)) * static_cast<uint32_t>(distance);
  }

  // The thread's share of queries, keys and values of the images from `image` on.
  NA_DEVICE void load(int32_t image, dev::Shared stage) const {
    if (!has_piece_) return;
    const int64_t first = int64_t{image} * p_.positions;
    const T* const query = query_ + first * p_.query_position;
    const T* const key = key_ + first * p_.key_position;
    const T* const value = value_ + first * p_.value_position;
    NA_UNROLL
    for (int i = 0; i < kOwn; ++i) {
      if (own_[i] >= 0) dev::copy_ahead(own_at(stage, i), row_at(query, own_[i], p_.query_position));
    }
    const int at_once = rows_at_once(plan_.warps, kRowBytes);
    const auto further = static_cast<dev::Shared>(at_once * kRowBytes);
    dev::Shared to = stage + place_;
    NA_NO_UNROLL
    for (int trip = 0; trip * kTrip * at_once < plan_.rows; ++trip) {
      const dev::Bytes16 positions = dev::load_shared16(dev::shared_base() + static_cast<dev::Shared>(positions_at(trip)));
      NA_UNROLL
      for (int i = 0; i < kTrip; ++i) {
        const auto position = static_cast<int32_t>(positions.word[i]);
        if (position >= 0) {
          dev::copy_ahead(to, row_at(key, position, p_.key_position));
          dev::copy_ahead(to + static_cast<dev::Shared>(room_.values), row_at(value, position, p_.value_position));
        }
        to += further;
      }
    }
  }

  // Bias and mask of the lane's scores, as products start from them.
  NA_DEVICE void find_start(int32_t head) {
    const RowSeen rows[2] = {seen(lane() / 4), seen(lane() / 4 + 8)};
    const T* const bias = static_cast<const T*>(p_.rel_pos_bias) + head * bias_numbers(p_);
    const float share = 1.0F / p_.scale;
    NA_UNROLL
    for (int n = 0; n < 2 * kChunks; ++n) {
      Start own;
      NA_UNROLL
      for (int i = 0; i < 4; ++i) {
        const KeyPlace key = key_of_hull(n * 8 + lane() % 4 * 2 + i % 2);
        const RowSeen& row = rows[i / 2];
        own.at[i] = -INFINITY;
        if (sees(row, key)) {
          own.at[i] = p_.rel_pos_bias == nullptr ? 0.0F : dev::to_float(bias[row.bias + key.bias]) * share;
        }
        if constexpr (!kSharedStart) start_[n][i] = own.at[i];
      }
      if constexpr (kSharedStart) shared_start(n / 2, n % 2) = own;
    }
  }

  // Scores of chunks [kFrom, kTo), without the factor, and the largest of each of the lane's two rows.
  template <int kFrom, int kTo>
  NA_DEVICE void score(dev::Shared stage, const uint32_t (&query)[kSteps][4], float (&score)[2 * kChunks][4],
                       float (&highest)[2]) const {
    NA_UNROLL
    for (int c = kFrom; c < kTo; ++c) {
      NA_UNROLL
      for (int k = 0; k < kSteps; ++k) {
        uint32_t keys[4];
        dev::load_matrices(keys, (stage + keys_at_[c]) ^ static_cast<dev::Shared>(k * 32));
        NA_UNROLL
        for (int half = 0; half < 2; ++half) {
          float(&own)[4] = score[2 * c + half];
          if (k > 0) {
            dev::multiply<T>(own, query[k], keys[2 * half], keys[2 * half + 1]);
          } else if constexpr (kSharedStart) {
            const Start start = shared_start(c, half);
            dev::multiply_from<T>(own, query[k], keys[2 * half], keys[2 * half + 1], start.at);
          } else {
            dev::multiply_from<T>(own, query[k], keys[2 * half], keys[2 * half + 1], start_[2 * c + half]);
          }
        }
      }
      NA_UNROLL
      for (int n = 2 * c; n < 2 * c + 2; ++n) {
        NA_UNROLL
        for (int i = 0; i < 4; ++i) highest[i / 2] = dev::max(highest[i / 2], score[n][i]);
      }
    }
  }

  // Adds the weighted values of chunks [kFrom, kTo), and the weights to `total`.
  template <int kFrom, int kTo>
  NA_DEVICE void weigh(dev::Shared values, const float (&score)[2 * kChunks][4], const float (&base)[2], float unit,
                       float (&sums)[2 * kSteps][4], float (&total)[4]) const {
    NA_UNROLL
    for (int c = kFrom; c < kTo; ++c) {
      uint32_t weights[4];
      NA_UNROLL
      for (int w = 0; w < 4; ++w) {
        const float(&own)[4] = score[2 * c + w / 2];
        weights[w] = dev::pack<T>(dev::exp2(own[w % 2 * 2] * unit - base[w % 2]),
                                  dev::exp2(own[w % 2 * 2 + 1] * unit - base[w % 2]));
      }
      NA_UNROLL
      for (int k = 0; k < kSteps; ++k) {
        uint32_t value[4];  // keys 0 to 7 of eight channels and of the next eight, then keys 8 to 15
        dev::load_matrices_transposed(value, (values + keys_at_[c]) ^ static_cast<dev::Shared>(k * 32));
        dev::multiply<T>(sums[2 * k], weights, value[0], value[2]);
        dev::multiply<T>(sums[2 * k + 1], weights, value[1], value[3]);
      }
      dev::multiply<T>(total, weights, kOnes, kOnes);
    }
  }

  // The natural logarithm of the softmax's denominator, from weights that are not rounded.
  NA_DEVICE void write_lse(const float (&score)[2 * kChunks][4], const float (&base)[2], float unit,
                           int32_t image) const {
    float total[2] = {};
    NA_UNROLL
    for (int n = 0; n < 2 * kChunks; ++n) {
      if (n >= 2 * kFew && !all_chunks_) continue;
      NA_UNROLL
      for (int i = 0; i < 4; ++i) total[i / 2] += dev::exp2(score[n][i] * unit - base[i / 2]);
    }
    NA_UNROLL
    for (int half = 0; half < 2; ++half) {
      NA_UNROLL
      for (int mask = 1; mask < 4; mask *= 2) total[half] += dev::shuffle_xor(total[half], mask);
      const int32_t at = seen(lane() / 4 + half * 8).position;
      if (lane() % 4 == 0 && at >= 0) {
        p_.lse[(int64_t{image} * p_.positions + at) * p_.heads + head_] = base[half] * kLn2 + dev::log(total[half]);
      }
    }
  }

  NA_DEVICE void attend(dev::Shared stage, int32_t image) const {
    const dev::Shared queries = stage + static_cast<dev::Shared>(room_.queries);
    const dev::Shared own = R::at(queries, warp() * kRowQueries + lane() % 16, lane() / 16);
    uint32_t query[kSteps][4];
    NA_UNROLL
    for (int k = 0; k < kSteps; ++k) dev::load_matrices(query[k], own ^ static_cast<dev::Shared>(k * 32));
    float score[2 * kChunks][4];
    float highest[2] = {-INFINITY, -INFINITY};
    this->template score<0, kFew>(stage, query, score, highest);
    if (all_chunks_) this->template score<kFew, kChunks>(stage, query, score, highest);
    const float unit = p_.scale * kLog2E;
    float base[2];
    NA_UNROLL
    for (int half = 0; half < 2; ++half) {
      NA_UNROLL
      for (int mask = 1; mask < 4; mask *= 2) {
        highest[half] = dev::max(highest[half], dev::shuffle_xor(highest[half], mask));
      }
      base[half] = highest[half] * unit;
    }
    if (p_.lse != nullptr) write_lse(score, base, unit, image);
    float sums[2 * kSteps][4] = {};
    float total[4] = {};
    const dev::Shared values = stage + static_cast<dev::Shared>(room_.values);
    weigh<0, kFew>(values, score, base, unit, sums, total);
    if (all_chunks_) weigh<kFew, kChunks>(values, score, base, unit, sums, total);
    write(own, stage, sums, total, image);
  }

  // Divides by the sums of weights and writes the warp's rows, gathered in shared memory where its queries were.
  NA_DEVICE void write(dev::Shared own, dev::Shared stage, const float (&sums)[2 * kSteps][4], const float (&total)[4],
                       int32_t image) const {
    const float share[2] = {dev::reciprocal(total[0]), dev::reciprocal(total[2])};
    dev::sync_warp();
    NA_UNROLL
    for (int k = 0; k < kSteps; ++k) {
      uint32_t rows[4];
      NA_UNROLL
      for (int m = 0; m < 4; ++m) {
        const float(&from)[4] = sums[2 * k + m / 2];
        rows[m] = dev::pack<T>(from[m % 2 * 2] * share[m % 2], from[m % 2 * 2 + 1] * share[m % 2]);
      }
      dev::store_matrices(own ^ static_cast<dev::Shared>(k * 32), rows);
    }
    dev::sync_warp();
    if (!has_piece_) return;
    const int32_t distance = p_.heads * p_.head_dim;
    T* const output = output_ + int64_t{image} * p_.positions * distance;
    NA_UNROLL
    for (int i = 0; i < kOwn; ++i) {
      const dev::Bytes16 piece = dev::load_shared16(own_at(stage, i));
      if (own_[i] >= 0) dev::store_global16(const_cast<void*>(row_at(output, own_[i], distance)), piece);
    }
  }

  const CudaProblem& p_;
  const Plan& plan_;
  const Room room_;
  int32_t head_ = 0;
  bool has_piece_ = false;   // or zeros, behind a head's last channel
  bool all_chunks_ = false;  // whether the warp's hull has more than kFew
  const T* query_ = nullptr;
  const T* key_ = nullptr;
  const T* value_ = nullptr;
  T* output_ = nullptr;
  int32_t own_[kOwn];              // positions of the queries whose pieces the lane moves
  dev::Shared place_ = 0;          // of the first row that the thread loads, from a stage
  dev::Shared keys_at_[kChunks];   // of the row whose address the lane gives for a chunk
  float start_[kSharedStart ? 1 : 2 * kChunks][4];
};

}  // namespace na_deploy::onepass
