// Fused neighborhood attention with small windows, bound by memory.
//
// A block keeps its tile of queries (one head and dilation group) and takes images in turn. All keys that the tile
// sees are in shared memory at once, while those of the next image are on their way. A warp takes 16 queries through
// the keys of its own hull in one pass: no online softmax, no boxes (groups.h takes hulls that are too large for that).
// Bias and mask do not depend on the image: they are worked out once, and products start from them (bias / scale,
// -infinity). Sums of weights are a product with ones.
#pragma once

#include <cmath>
#include <cstdint>

#include "bias.h"
#include "device.h"
#include "onepass/places.h"
#include "onepass/plan.h"
#include "onepass/turns.h"
#include "problem.h"
#include "scores.h"
#include "shape.h"

namespace na_deploy::cuda::onepass {

template <typename T, int kDim, int kChunks>
class OnePassKernel : public Turns<T, kDim, OnePassKernel<T, kDim, kChunks>> {
 public:
  NA_DEVICE OnePassKernel(const CudaProblem& problem, const Plan& plan) : Base(problem, plan) {}

 private:
  using Base = Turns<T, kDim, OnePassKernel>;
  friend Base;
  using Base::kOnes;
  using Base::kSteps;
  using Base::lane;
  using Base::p_;
  using Base::plan_;
  using Base::room_;
  using Base::seen;
  using Base::warp;
  using Base::write;
  using typename Base::R;
  static constexpr int kFew = few_chunks(kChunks);
  static constexpr int kRegisterChunks = register_chunks(kDim, kChunks);

  struct alignas(16) Start {
    float at[4];
  };

  NA_DEVICE KeyPlace& key_of_hull(int number) const {
    return dev::shared_object<KeyPlace>(room_.list + number * static_cast<int>(sizeof(KeyPlace)));
  }
  NA_DEVICE Start& shared_start(int chunk, int half) const {
    return dev::shared_object<Start>(room_.start +
                                     (warp() * (kChunks - kRegisterChunks) + chunk - kRegisterChunks) * kStartBytes +
                                     half * (kStartBytes / 2) + lane() * 16);
  }

  NA_DEVICE void find_keys() const {
    for (int n = dev::thread(); n < kChunks * kChunk; n += dev::threads()) key_of_hull(n) = key_place(plan_, n);
  }

  // Finds the places of the thread's pieces and the warp's hull; returns the number of the hull's chunks.
  NA_DEVICE int32_t begin(const Tile& tile, const Corner& corner) {
    Base::begin_loads(tile);
    const WarpHull hull = find_rows(p_, plan_, tile, corner, &dev::shared_object<RowSeen>(room_.seen));
    all_chunks_ = hull.chunks > kFew;
    NA_UNROLL
    for (int c = 0; c < kChunks; ++c) {
      const int key = hull.row + key_of_hull(c * kChunk + lane() / 16 * 8 + lane() % 8).slot;
      const int value = hull.row + key_of_hull(c * kChunk + lane() % 16).slot;
      const auto values = static_cast<dev::Shared>(room_.values);
      rows_at_[c] = R::at(0, smaller(key, plan_.rows - 1), lane() / 8 % 2) |
                    R::at(values, smaller(value, plan_.rows - 1), lane() / 16) / 16 << 16;
    }
    return hull.chunks;
  }

  NA_DEVICE void prepare(int32_t head, int32_t chunks) {
    if (p_.rel_pos_bias != nullptr) {
      find_start<true>(head, chunks);
    } else {
      find_start<false>(head, chunks);
    }
  }

  // Fills in bias and mask of the lane's scores, the numbers that products start from.
  template <bool kHasBias>
  NA_DEVICE void find_start(int32_t head, int32_t chunks) {
    const RowSeen rows[2] = {seen(lane() / 4), seen(lane() / 4 + 8)};
    const auto bias = reinterpret_cast<uint64_t>(static_cast<const T*>(p_.rel_pos_bias) + head * bias_numbers(p_));
    const float share = 1.0F / p_.scale;
    const dev::Shared keys =
        dev::shared_base() + static_cast<dev::Shared>(room_.list + lane() % 4 * 2 * static_cast<int>(sizeof(KeyPlace)));
    NA_UNROLL
    for (int c = 0; c < kChunks; ++c) {
      Start own[2];
      NA_UNROLL
      for (int i = 0; i < 8; ++i) own[i / 4].at[i % 4] = -INFINITY;
      // Also keeps the compiler from reading all biases at once, for which there are no registers.
      if (c < chunks) {
        NA_UNROLL
        for (int i = 0; i < 8; ++i) {
          const int number = c * kChunk + i / 4 * 8 + i % 2;
          const dev::Bytes16 words =
              dev::load_shared16(keys + static_cast<dev::Shared>(number * static_cast<int>(sizeof(KeyPlace))));
          const KeyPlace key{words.word[0], static_cast<int32_t>(words.word[1]), 0, 0};
          const RowSeen& row = rows[i % 4 / 2];
          const bool is_seen = sees(row, key);
          float begin = 0.0F;
          if constexpr (kHasBias) {
            const auto at = static_cast<uint32_t>(is_seen ? row.bias + key.bias : 0);
            begin = dev::to_float(dev::load_global2(reinterpret_cast<const T*>(dev::element_at(bias, at, 2)))) * share;
          }
          own[i / 4].at[i % 4] = is_seen ? begin : -INFINITY;
        }
      }
      NA_UNROLL
      for (int i = 0; i < 8 && c < kRegisterChunks; ++i) start_[2 * c + i / 4][i % 4] = own[i / 4].at[i % 4];
      NA_UNROLL
      for (int half = 0; half < 2 && c >= kRegisterChunks; ++half) shared_start(c, half) = own[half];
    }
  }

  // Computes scores of chunks [kFrom, kTo), without the factor, and the largest of each of the lane's two rows.
  template <int kFrom, int kTo>
  NA_DEVICE void score(dev::Shared stage, const uint32_t (&query)[kSteps][4], float (&score)[2 * kChunks][4],
                       float (&highest)[2]) const {
    NA_UNROLL
    for (int c = kFrom; c < kTo; ++c) {
      NA_UNROLL
      for (int k = 0; k < kSteps; ++k) {
        uint32_t keys[4];
        dev::load_matrices(keys, stage + ((rows_at_[c] & 0xFFFF) ^ static_cast<dev::Shared>(k * 32)));
        NA_UNROLL
        for (int half = 0; half < 2; ++half) {
          float (&own)[4] = score[2 * c + half];
          if (k > 0) {
            dev::multiply<T>(own, query[k], keys[2 * half], keys[2 * half + 1]);
          } else if (c >= kRegisterChunks) {
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
        for (int i = 0; i < 4; ++i) {
          const bool is_first = n == 0 && i % 2 == 0;
          highest[i / 2] = is_first ? score[0][i] : dev::max(highest[i / 2], score[n][i]);
        }
      }
    }
  }

  // Adds the weighted values of chunks [kFrom, kTo), and the weights to `total`.
  template <int kFrom, int kTo>
  NA_DEVICE void weigh(dev::Shared stage, const float (&score)[2 * kChunks][4], const float (&base)[2], float unit,
                       float (&sums)[2 * kSteps][4], float (&total)[4]) const {
    NA_UNROLL
    for (int c = kFrom; c < kTo; ++c) {
      uint32_t weights[4];
      NA_UNROLL
      for (int w = 0; w < 4; ++w) {
        const float (&own)[4] = score[2 * c + w / 2];
        weights[w] = dev::pack<T>(dev::exp2(own[w % 2 * 2] * unit - base[w % 2]),
                                  dev::exp2(own[w % 2 * 2 + 1] * unit - base[w % 2]));
      }
      NA_UNROLL
      for (int k = 0; k < kSteps; ++k) {
        uint32_t value[4];
        const dev::Shared row = rows_at_[c] >> 16 << 4;
        dev::load_matrices_transposed(value, stage + (row ^ static_cast<dev::Shared>(k * 32)));
        dev::multiply<T>(sums[2 * k], weights, value[0], value[1]);
        dev::multiply<T>(sums[2 * k + 1], weights, value[2], value[3]);
      }
      dev::multiply<T>(total, weights, kOnes, kOnes);
    }
  }

  // Returns the natural logarithm of the softmax's denominator, from weights that are not rounded.
  NA_DEVICE void write_lse(const float (&score)[2 * kChunks][4], const float (&base)[2], float unit,
                           int32_t image) const {
    const int32_t head = dev::shared_object<Tile>(room_.tile).head;
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
        p_.lse[(int64_t{image} * p_.positions + at) * p_.heads + head] = (base[half] + dev::log2(total[half])) * kLn2;
      }
    }
  }

  NA_DEVICE void attend(dev::Shared stage, int32_t image) {
    const dev::Shared queries = stage + static_cast<dev::Shared>(room_.queries);
    const dev::Shared own = R::at(queries, warp() * kRowQueries + lane() % 16, lane() / 16);
    uint32_t query[kSteps][4];
    NA_UNROLL
    for (int k = 0; k < kSteps; ++k) dev::load_matrices(query[k], own ^ static_cast<dev::Shared>(k * 32));
    float score[2 * kChunks][4];
    float highest[2];
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
    weigh<0, kFew>(stage, score, base, unit, sums, total);
    if (all_chunks_) weigh<kFew, kChunks>(stage, score, base, unit, sums, total);
    write(own, stage, sums, total, image);
  }

  bool all_chunks_ = false;      // the warp's hull has more than kFew chunks
  uint32_t rows_at_[kChunks];    // places from a stage of the rows that the lane addresses for a chunk: the key's in
                                 // 16 low bits, a sixteenth of the value's in the high ones
  float start_[2 * kChunks][4];  // the first kRegisterChunks are used
};

}  // namespace na_deploy::cuda::onepass
