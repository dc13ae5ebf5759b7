// The one-pass kernel for many keys, which go through registers in groups of chunks: an online softmax over groups.
//
// Only one group's scores live in registers, so that twice as many warps fit a multiprocessor. Per group and lane, a
// word of bits masks; biases come from a table of the head's in shared memory, for two neighbouring keys at once.
#pragma once

#include <cmath>
#include <cstdint>

#include "bias.h"
#include "bias_table.h"
#include "device.h"
#include "onepass/places.h"
#include "onepass/plan.h"
#include "onepass/turns.h"
#include "problem.h"
#include "scores.h"
#include "shape.h"

namespace na_deploy::cuda::onepass {

template <typename T, int kDim>
class GroupedKernel : public Turns<T, kDim, GroupedKernel<T, kDim>> {
 public:
  NA_DEVICE GroupedKernel(const CudaProblem& problem, const Plan& plan) : Base(problem, plan) {}

 private:
  using Base = Turns<T, kDim, GroupedKernel>;
  friend Base;
  using Base::kOnes;
  using Base::kRowBytes;
  using Base::kSteps;
  using Base::lane;
  using Base::p_;
  using Base::plan_;
  using Base::room_;
  using Base::seen;
  using Base::warp;
  using Base::write;
  using typename Base::R;
  static_assert(kGroupChunks == 4, "the slots of a group are one load of 16 bytes, its masks one word");

  // Below every score but -infinity, and finite, so that the difference of the two is a number.
  static constexpr float kNothing = -3e38F;
  static constexpr float kSlack =
      8.0F;  // scores this much above the base do not raise it: 2^8 is a weight as good as 1

  // The weighted sum so far of a lane's two rows.
  struct Running {
    float sums[2 * kSteps][4] = {};
    float total[4] = {};                   // of weights as they are multiplied, in elements 0 and 2
    float base[2] = {kNothing, kNothing};  // subtracted from scores, in units of log2
    float exact[2] = {};                   // for `lse`: the lane's part of the weights, not rounded
  };

  NA_DEVICE static int lane_key() { return lane() / 16 * 8 + lane() % 8; }
  NA_DEVICE static dev::Shared shared_at(int offset) { return dev::shared_base() + static_cast<dev::Shared>(offset); }
  NA_DEVICE uint32_t& listed(int key) const { return dev::shared_object<uint32_t>(room_.list + key * 4); }
  NA_DEVICE int masks_at(int group) const {
    return room_.masks + (warp() * groups_of(plan_.chunks) + group) * kMaskBytes + lane() * 4;
  }

  // Lists the keys of every warp's hull, their slots and pairs by groups, all threads of the block together.
  NA_DEVICE void find_keys() const {
    const int whole = whole_groups(plan_.chunks);
    for (int n = dev::thread(); n < plan_.chunks * kChunk; n += dev::threads()) {
      const KeyPlace key = key_place(plan_, n);
      listed(n) = key.at;
      const int chunk = n / kChunk;
      const int further = chunk - whole * kGroupChunks;  // past the groups of kGroupChunks
      const int group = further < 0 ? chunk / kGroupChunks : whole + further / (kGroupChunks - 1);
      const int c = chunk - first_chunk(group, whole);
      const int own = n % kChunk;
      dev::shared_object<int32_t>(room_.slots + group * kSlotBytes + own * 16 + c * 4) = key.slot * kRowBytes;
      if (own % 2 != 0) continue;
      dev::shared_object<int32_t>(room_.pairs + group * kPairBytes + own % 8 * 16 + c * 8 + own / 8 * 4) =
          key.bias * kBiasBytes;
    }
  }

  // Finds the places of the thread's pieces and the warp's hull; returns the number of the hull's chunks.
  NA_DEVICE int32_t begin(const Tile& tile, const Corner& corner) {
    Base::begin_loads(tile);
    const WarpHull hull = find_rows(p_, plan_, tile, corner, &dev::shared_object<RowSeen>(room_.seen));
    // Rows are swizzled by their last three bits, to which a chunk's keys add no more than their number (Plan::pitch).
    const auto first = [&](int key, int piece) {
      return R::at(0, hull.row + key, piece) - static_cast<dev::Shared>(key * kRowBytes);
    };
    key_row_ = first(lane_key(), lane() / 8 % 2);
    value_row_ = first(lane() % 16, lane() / 16) + static_cast<dev::Shared>(room_.values);
    return hull.chunks;
  }

  NA_DEVICE void prepare(int32_t head, int32_t chunks) {
    const int whole = whole_groups(plan_.chunks);
    while (first_chunk(groups_, whole) < chunks) ++groups_;
    find_masks(whole);
    if (p_.rel_pos_bias != nullptr) read_biases(head);
  }

  // Finds which of its scores the lane's two queries see.
  NA_DEVICE void find_masks(int whole) const {
    const RowSeen rows[2] = {seen(lane() / 4), seen(lane() / 4 + 8)};
    NA_NO_UNROLL
    for (int group = 0; group < groups_; ++group) {
      const int first = first_chunk(group, whole);
      uint32_t mask = 0;
      NA_NO_UNROLL
      for (int c = 0; c < first_chunk(group + 1, whole) - first; ++c) {
        uint32_t own = 0;
        NA_UNROLL
        for (int i = 0; i < 8; ++i) {
          const uint32_t key = listed((first + c) * kChunk + i / 4 * 8 + lane() % 4 * 2 + i % 2);
          if (sees(rows[i % 4 / 2], {key, 0, 0, 0})) own |= 1U << i;
        }
        mask |= own << (c * 8);
      }
      dev::shared_object<uint32_t>(masks_at(group)) = mask;
    }
  }

  // Fills in the table of biases, all threads of the block together; what lies outside the head's is never used.
  NA_DEVICE void read_biases(int32_t head) const {
    const T* const from = static_cast<const T*>(p_.rel_pos_bias) + head * bias_numbers(p_);
    const float share = 1.0F / p_.scale;
    for (int n = dev::thread() - plan_.biases_below; n < plan_.biases - plan_.biases_below; n += dev::threads()) {
      int32_t at[kAxes] = {larger(n, 0), 0, 0};
      at[1] = divide(at[0], plan_.by_bias_pitch[0]);
      at[2] = divide(at[1], plan_.by_bias_pitch[1]);
      int32_t index = 0;
      bool exists = n >= 0;
      NA_UNROLL
      for (int a = 0; a < kAxes; ++a) {
        exists = exists && at[a] < 2 * p_.axis[a].kernel_size - 1;
        index += at[a] * p_.bias_distance[a];
      }
      const float own = exists ? dev::to_float(dev::load_global2(from + index)) * share : 0.0F;
      dev::shared_object<float>(room_.biases + n * kBiasBytes) = own;
      if (n > -plan_.biases_below) dev::shared_object<float>(room_.biases + n * kBiasBytes - 4) = own;
    }
  }

  NA_DEVICE void attend(dev::Shared stage, int32_t image) {
    if (p_.rel_pos_bias != nullptr) {
      attend_all<true>(stage, image);
    } else {
      attend_all<false>(stage, image);
    }
  }

  template <bool kHasBias>
  NA_DEVICE void attend_all(dev::Shared stage, int32_t image) {
    const dev::Shared queries = stage + static_cast<dev::Shared>(room_.queries);
    int row = warp() * kRowQueries + lane() % 16;
    dev::forget(row);  // or its place would take a register meanwhile
    const dev::Shared own = R::at(queries, row, lane() / 16);
    uint32_t query[kSteps][4];
    NA_UNROLL
    for (int k = 0; k < kSteps; ++k) dev::load_matrices(query[k], own ^ static_cast<dev::Shared>(k * 32));
    Running running;
    dev::Shared bias[2] = {};
    NA_UNROLL
    for (int half = 0; half < 2 && kHasBias; ++half) {
      bias[half] = shared_at(room_.biases + seen(lane() / 4 + half * 8).bias * kBiasBytes);
    }
    int group = 0;
    NA_NO_UNROLL
    for (const int whole = smaller(whole_groups(plan_.chunks), groups_); group < whole; ++group) {
      attend_group<kGroupChunks, kHasBias>(group, stage + key_row_, stage + value_row_, bias, query, running);
    }
    NA_NO_UNROLL
    for (; group < groups_; ++group) {
      attend_group<kGroupChunks - 1, kHasBias>(group, stage + key_row_, stage + value_row_, bias, query, running);
    }
    if (p_.lse != nullptr) write_lse(running, image);
    write(own, stage, running.sums, running.total, image);
  }

  template <int kChunks, bool kHasBias>
  NA_DEVICE void attend_group(int group, dev::Shared keys_at, dev::Shared values_at, const dev::Shared (&bias)[2],
                              const uint32_t (&query)[kSteps][4], Running& running) const {
    const dev::Bytes16 slots = dev::load_shared16(shared_at(room_.slots + group * kSlotBytes + lane_key() * 16));
    const uint32_t mask = dev::shared_object<uint32_t>(masks_at(group));
    const dev::Shared pairs_at = shared_at(room_.pairs + group * kPairBytes + lane() % 4 * 32);
    dev::Bytes16 pairs{};
    float score[2 * kChunks][4];
    NA_UNROLL
    for (int c = 0; c < kChunks; ++c) {
      if (kHasBias && c % 2 == 0) pairs = dev::load_shared16(pairs_at + static_cast<dev::Shared>(c / 2 * 16));
      NA_UNROLL
      for (int k = 0; k < kSteps; ++k) {
        uint32_t keys[4];
        dev::load_matrices(keys, (keys_at + slots.word[c]) ^ static_cast<dev::Shared>(k * 32));
        NA_UNROLL
        for (int half = 0; half < 2; ++half) {
          float (&own)[4] = score[2 * c + half];
          NA_UNROLL
          for (int row = 0; row < 2 && k == 0; ++row) {
            dev::Floats2 start{};
            if constexpr (kHasBias) start = dev::load_shared8(bias[row] + pairs.word[c % 2 * 2 + half]);
            own[2 * row] = start.at[0];
            own[2 * row + 1] = start.at[1];
          }
          dev::multiply<T>(own, query[k], keys[2 * half], keys[2 * half + 1]);
        }
      }
    }
    float highest[2] = {-INFINITY, -INFINITY};
    NA_UNROLL
    for (int n = 0; n < 2 * kChunks; ++n) {
      NA_UNROLL
      for (int i = 0; i < 4; ++i) {
        score[n][i] = (mask & 1U << (n * 4 + i)) != 0 ? score[n][i] : -INFINITY;
        highest[i / 2] = dev::max(highest[i / 2], score[n][i]);
      }
    }
    const float unit = p_.scale * kLog2E;
    if (dev::any(highest[0] * unit - kSlack > running.base[0] || highest[1] * unit - kSlack > running.base[1])) {
      raise(highest, unit, running);
    }
    if (p_.lse != nullptr) {
      NA_UNROLL
      for (int n = 0; n < 2 * kChunks; ++n) {
        NA_UNROLL
        for (int i = 0; i < 4; ++i) running.exact[i / 2] += dev::exp2(score[n][i] * unit - running.base[i / 2]);
      }
    }
    weigh<kChunks>(group, values_at, score, unit, running);
  }

  // Raises the number that is subtracted from scores where they exceed it by much, and scales down what was summed up.
  NA_DEVICE static void raise(float (&highest)[2], float unit, Running& running) {
    NA_UNROLL
    for (int half = 0; half < 2; ++half) {
      NA_UNROLL
      for (int mask = 1; mask < 4; mask *= 2) {
        highest[half] = dev::max(highest[half], dev::shuffle_xor(highest[half], mask));
      }
      const float own = highest[half] * unit;
      const float base = own - kSlack > running.base[half] ? own : running.base[half];
      const float fade = dev::exp2(running.base[half] - base);
      running.base[half] = base;
      running.exact[half] *= fade;
      running.total[2 * half] *= fade;
      NA_UNROLL
      for (int n = 0; n < 2 * kSteps; ++n) {
        running.sums[n][2 * half] *= fade;
        running.sums[n][2 * half + 1] *= fade;
      }
    }
  }

  // Adds the weighted values of a group's chunks.
  template <int kChunks>
  NA_DEVICE void weigh(int group, dev::Shared values_at, const float (&score)[2 * kChunks][4], float unit,
                       Running& running) const {
    const dev::Bytes16 slots = dev::load_shared16(shared_at(room_.slots + group * kSlotBytes + lane() % 16 * 16));
    NA_UNROLL
    for (int c = 0; c < kChunks; ++c) {
      uint32_t weights[4];
      NA_UNROLL
      for (int w = 0; w < 4; ++w) {
        const float (&own)[4] = score[2 * c + w / 2];
        const float base = running.base[w % 2];
        weights[w] = dev::pack<T>(dev::exp2(own[w % 2 * 2] * unit - base), dev::exp2(own[w % 2 * 2 + 1] * unit - base));
      }
      NA_UNROLL
      for (int k = 0; k < kSteps; ++k) {
        uint32_t value[4];
        dev::load_matrices_transposed(value, (values_at + slots.word[c]) ^ static_cast<dev::Shared>(k * 32));
        dev::multiply<T>(running.sums[2 * k], weights, value[0], value[1]);
        dev::multiply<T>(running.sums[2 * k + 1], weights, value[2], value[3]);
      }
      dev::multiply<T>(running.total, weights, kOnes, kOnes);
    }
  }

  // Writes the natural logarithm of the softmax's denominator.
  NA_DEVICE void write_lse(Running& running, int32_t image) const {
    const int32_t head = dev::shared_object<Tile>(room_.tile).head;
    NA_UNROLL
    for (int half = 0; half < 2; ++half) {
      NA_UNROLL
      for (int mask = 1; mask < 4; mask *= 2) {
        running.exact[half] += dev::shuffle_xor(running.exact[half], mask);
      }
      const int32_t at = seen(lane() / 4 + half * 8).position;
      if (lane() % 4 == 0 && at >= 0) {
        p_.lse[(int64_t{image} * p_.positions + at) * p_.heads + head] =
            (running.base[half] + dev::log2(running.exact[half])) * kLn2;
      }
    }
  }

  int groups_ = 0;  // of the warp's hull
  // Places, from a stage, of the rows that the lane addresses, less their keys' slots.
  dev::Shared key_row_ = 0;
  dev::Shared value_row_ = 0;
};

}  // namespace na_deploy::cuda::onepass
