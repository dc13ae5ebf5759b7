// Fused neighborhood attention for Hopper: large windows, heads of 64 or 128 channels of 16 bits, no dilation, biases
// that fit shared memory.
//
// A block takes a tile of 128 queries. One warp fetches: the tensor memory accelerator brings boxes of 128 keys, of as
// many axes as the map has, straight from the tensors as they are, heads last. Two warp groups attend, 64 queries each:
// the products of a box's keys run while the products with the values of the box before do, and the softmax of one
// works beside the products of the other. Boxes that no query sees are skipped, those that all see are not masked.
#pragma once

#include <cmath>
#include <cstdint>

#include "device.h"
#include "fragments.h"
#include "hopper/pipeline.h"
#include "hopper/tensors.h"
#include "hopper/wgmma.h"
#include "scores.h"
#include "shape.h"
#include "tiles.h"

namespace na_deploy::cuda::hopper {

constexpr int kQueries = 128;
constexpr int kKeys = 128;
constexpr int kGroups = 2;         // groups that attend
constexpr int kThreads = 128 * 3;  // one more group, which fetches

// Shared memory. A block of 128 rows of 64 channels is swizzled by itself; wider heads have two, one after the other.
template <int kDim, typename S>
struct HopperLayout {
  static_assert(kDim == 64 || kDim == 128, "64 channels to a row, one or two rows");
  static_assert(S::kQueries == kQueries && S::kKeys == kKeys, "two warp groups of queries, and as many keys");
  static constexpr int kBlock = 128 * 128;
  static constexpr int kBlocks = kDim / kBoxChannels;
  static constexpr int kPart = kBlock * kBlocks;  // queries, keys or values
  static constexpr int kStages = kDim == 64 ? 4 : 2;
  static constexpr int kKeysAt = kPart;
  static constexpr int kValuesAt = kKeysAt + kStages * kPart;
  static constexpr int kBarriers = kValuesAt + kStages * kPart;
  static constexpr int kTile = kBarriers + 8 * (4 * kStages + 2);
  static constexpr int kWindows = kTile + static_cast<int>(sizeof(Tile));
  static constexpr int kBias = kWindows + static_cast<int>(sizeof(RowWindow)) * kQueries;
  static_assert(kTile % alignof(Tile) == 0 && kWindows % alignof(RowWindow) == 0, "objects are aligned");
  static constexpr int bytes(int32_t shared_bias) { return kBias + 4 * shared_bias; }
  static_assert(kBias + 4 * kMostSharedBias <= 227 * 1024, "a block has 227 KB");
};

template <typename T, int kDim, typename S>
class HopperKernel {
 public:
  NA_DEVICE HopperKernel(const CudaProblem& problem, const TileGrid& grid, const Tensors<TensorMap>& tensors)
      : p_(problem), grid_(grid), tensors_(tensors), tile_(dev::shared_object<Tile>(L::kTile)) {}

  NA_DEVICE void run() {
    if (dev::thread() == 0) {
      tile_ = tile_at(p_, grid_, S::tile(), static_cast<int32_t>(dev::block()));
      make_barrier(queries_full(), 1);
      for (int s = 0; s < L::kStages; ++s) {
        make_barrier(keys_full(s), 1);
        make_barrier(values_full(s), 1);
        make_barrier(keys_free(s), kGroups * 4);
        make_barrier(values_free(s), kGroups * 4);
      }
      publish_barriers();
    }
    dev::sync();
    if (tile_.is_empty) return;
    if (p_.rel_pos_bias != nullptr) {
      SharedBias::at<S>(p_, L::kBias).template read<T>(p_, tile_.head);
      dev::sync();
    }
    const int group = dev::first_lane(dev::thread() / 128);  // tells the compiler that the whole warp has one number
    if (group == 0) {
      give_registers<24>();
      if (dev::thread() == 0) fetch();
    } else {
      take_registers<240>();
      attend_all(group - 1);
    }
  }

 private:
  using L = HopperLayout<kDim, S>;
  using Stage = Ring<L::kStages>;
  using R = Rows<2 * kBoxChannels>;  // swizzled as copies write them
  using F = Fragments<T, 2 * kBoxChannels>;

  NA_DEVICE static dev::Shared at(int offset) { return dev::shared_base() + static_cast<dev::Shared>(offset); }
  NA_DEVICE static dev::Shared queries() { return at(0); }
  NA_DEVICE static dev::Shared keys(int stage) { return at(L::kKeysAt + stage * L::kPart); }
  NA_DEVICE static dev::Shared values(int stage) { return at(L::kValuesAt + stage * L::kPart); }
  NA_DEVICE static dev::Shared barrier(int number) { return at(L::kBarriers + 8 * number); }
  NA_DEVICE static dev::Shared queries_full() { return barrier(4 * L::kStages); }
  NA_DEVICE static dev::Shared keys_full(int stage) { return barrier(stage); }
  NA_DEVICE static dev::Shared values_full(int stage) { return barrier(L::kStages + stage); }
  NA_DEVICE static dev::Shared keys_free(int stage) { return barrier(2 * L::kStages + stage); }
  NA_DEVICE static dev::Shared values_free(int stage) { return barrier(3 * L::kStages + stage); }
  // The first of the warp's 16 queries; the first four warps have none.
  NA_DEVICE static int first_row() { return (dev::thread() / 32 - 4) * 16; }
  NA_DEVICE static RowWindow& window(int row) {
    return dev::shared_object<RowWindow>(L::kWindows + row * static_cast<int>(sizeof(RowWindow)));
  }

  // Fetches all channels of a head at the given positions.
  NA_DEVICE void fetch_part(dev::Shared to, const TensorMap& from, dev::Shared full, int32_t head, int32_t x, int32_t y,
                            int32_t z) const {
    expect_bytes(full, L::kPart);
    for (int b = 0; b < L::kBlocks; ++b) {
      const int32_t corner[kTensorAxes] = {head * kDim + b * kBoxChannels, x, y, z, static_cast<int32_t>(tile_.image)};
      copy_box(to + static_cast<dev::Shared>(b * L::kBlock), from, full, corner);
    }
  }

  NA_DEVICE void fetch_step(dev::Shared to, const TensorMap& map, const TensorMap& additional, dev::Shared full,
                            int32_t head, const KeyStep& step) const {
    if (step.is_additional()) {
      fetch_part(to, additional, full, head, step.additional, 0, 0);
    } else {
      fetch_part(to, map, full, head, step.first[2], step.first[1], step.first[0]);
    }
  }

  // Fetches all queries and boxes; run by one thread of the block.
  NA_DEVICE void fetch() const {
    const int32_t key_head = quotient(tile_.head, p_.by_heads_per_key);
    fetch_part(queries(), tensors_.query, queries_full(), tile_.head, tile_.first[2], tile_.first[1], tile_.first[0]);
    Stage stage;
    for (KeyStep step = first_step(tile_); !is_past(step, p_.additional);
         advance(tile_, S::box(), S::kFirstAxis, step)) {
      await(keys_free(stage.index), stage.phase ^ 1);
      fetch_step(keys(stage.index), tensors_.key, tensors_.additional_key, keys_full(stage.index), key_head, step);
      await(values_free(stage.index), stage.phase ^ 1);
      fetch_step(values(stage.index), tensors_.value, tensors_.additional_value, values_full(stage.index), key_head,
                 step);
      stage.advance();
    }
  }

  // Starts the products of the group's queries, `own`, with a box's keys.
  NA_DEVICE void start_scores(uint64_t own, const Stage& stage, float (&score)[16][4]) const {
    await(keys_full(stage.index), stage.phase);
    const uint64_t box = describe(keys(stage.index), 16);
    begin_products();
    NA_UNROLL
    for (int k = 0; k < kDim / 16; ++k) {
      const auto channels = static_cast<dev::Shared>(k / 4 * L::kBlock + k % 4 * 32);
      multiply_rows<T>(score, further(own, channels), further(box, channels), k > 0);
    }
    commit_products();
  }

  // Starts adding a box's weighted values.
  NA_DEVICE void start_sums(const typename F::Weights (&weight)[kKeys / 16], const Stage& stage) {
    await(values_full(stage.index), stage.phase);
    const uint64_t box = describe(values(stage.index), L::kBlock);
    begin_products();
    NA_UNROLL
    for (int k = 0; k < kKeys / 16; ++k) {
      multiply_values<T>(output_, weight[k].part, further(box, static_cast<uint32_t>(k * 16 * 128)));
    }
    commit_products();
  }

  NA_DEVICE static void release(dev::Shared free) {
    dev::sync_warp();
    if (dev::thread() % 32 == 0) arrive(free);
  }

  // Turns products into weights. Sets the factors for earlier sums, and returns whether any of them is not 1.
  NA_DEVICE bool weigh(const Tile& tile, const KeyStep& step, float (&score)[16][4], float (&factor)[2]) {
    const int lane = dev::thread() % 32;
    const bool inside = is_inside(tile, S::box(), S::kFirstAxis, step, p_.additional);
    const bool biased = p_.rel_pos_bias != nullptr && !step.is_additional();
    // The exponential applies the scale, unless a bias is added first or the scale is not positive: a negative scale
    // would turn the largest score into the smallest.
    const bool scaled = biased || p_.scale <= 0.0F;
    if (scaled) {
      NA_UNROLL
      for (int n = 0; n < 16; ++n) {
        NA_UNROLL
        for (int i = 0; i < 4; ++i) score[n][i] *= p_.scale * kLog2E;
      }
    }
    if (step.is_additional() && !inside) {
      NA_UNROLL
      for (int n = 0; n < 16; ++n) hide_additional(p_, score[n], n * 8, step);
    } else if (!inside || biased) {
      NA_UNROLL
      for (int half = 0; half < 2; ++half) {  // one after the other: registers do not suffice for both
        const Seen<S> seen = look<S>(p_, window(first_row() + half * 8 + lane / 4), step);
        if (biased) {
          const SharedBias bias = SharedBias::at<S>(p_, L::kBias);
          NA_UNROLL
          for (int n = 0; n < 16; ++n) add_bias<S>(p_, score[n], half, n * 8, seen, bias);
        }
        NA_UNROLL
        for (int n = 0; n < 16; ++n) hide<S>(score[n], half, n * 8, seen);
      }
    }
    float highest[2] = {-INFINITY, -INFINITY};
    NA_UNROLL
    for (int n = 0; n < 16; ++n) {
      NA_UNROLL
      for (int i = 0; i < 4; ++i) highest[i / 2] = dev::max(highest[i / 2], score[n][i]);
    }
    const float unit = scaled ? 1.0F : p_.scale * kLog2E;
    float base[2];
    const bool changes = softmax_.raise(highest, unit, base, factor);
    NA_UNROLL
    for (int n = 0; n < 16; ++n) softmax_.weigh(score[n], unit, base);
    return changes;
  }

  NA_DEVICE static void pack(const float (&score)[16][4], typename F::Weights (&weight)[kKeys / 16]) {
    NA_UNROLL
    for (int k = 0; k < kKeys / 16; ++k) weight[k] = F::weights(score[2 * k], score[2 * k + 1]);
  }

  NA_DEVICE void attend_all(int group) {
    const int row = dev::thread() % 128;
    if (row < 64) window(group * 64 + row) = row_window<S>(p_, tile_, group * 64 + row);
    sync_group(1 + group);
    await(queries_full(), 0);

    float score[16][4];
    float factor[2];
    typename F::Weights weight[kKeys / 16];
    const Tile tile = tile_;  // kept in registers for the loop
    KeyStep step = first_step(tile);
    Stage stage;
    const uint64_t own = describe(queries() + static_cast<dev::Shared>(group * 64 * 128), 16);
    start_scores(own, stage, score);
    wait_products<0>();
    arrived(score);
    release(keys_free(stage.index));
    weigh(tile, step, score, factor);
    pack(score, weight);
    for (advance(tile, S::box(), S::kFirstAxis, step); !is_past(step, p_.additional);
         advance(tile, S::box(), S::kFirstAxis, step)) {
      const Stage before = stage;
      stage.advance();
      start_scores(own, stage, score);
      start_sums(weight, before);
      wait_products<1>();
      arrived(score);
      release(keys_free(stage.index));
      const bool changes = weigh(tile, step, score, factor);
      arrived(score);
      // Two different waits, so that the compiler leaves them after the branch, and the softmax before the branch
      // overlaps the sums under way. It would move a single wait ahead of both. The whole warp takes one branch.
      if (changes) {
        wait_products<0, 1>();
        arrived(output_);
        fade(output_, factor);
      } else {
        wait_products<0, 0>();
        arrived(output_);
      }
      release(values_free(before.index));
      pack(score, weight);
    }
    start_sums(weight, stage);
    wait_products<0>();
    arrived(output_);
    sync_group(1 + group);  // the group's queries are no longer needed: their place takes its results
    write_rows<T, S>(p_, tile_, first_row(), softmax_, output_, [](int at_row, int piece) {
      return R::at(queries() + static_cast<dev::Shared>(piece / 8 * L::kBlock), at_row, piece % 8);
    });
  }

  const CudaProblem& p_;
  const TileGrid& grid_;
  const Tensors<TensorMap>& tensors_;
  Tile& tile_;
  float output_[kDim / 8][4] = {};
  RunningSoftmax softmax_;
};

}  // namespace na_deploy::cuda::hopper
