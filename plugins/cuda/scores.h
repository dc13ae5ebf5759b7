// The way from products to weights: mask, bias and the online softmax of the two rows of queries that a lane of a warp
// holds, in the layout in which tensor cores leave results.
#pragma once

#include <cmath>
#include <cstdint>

#include "bias.h"
#include "device.h"
#include "plain_kernel.h"
#include "problem.h"
#include "shape.h"
#include "tiles.h"

namespace na_deploy::cuda {

constexpr float kLn2 = 0.693147181F;

// Returns whether a step's products can stay unscaled: every query sees every key and no bias is added. The exponential
// then applies the scale, which must be positive, because a negative scale would turn the largest score into the
// smallest.
template <typename S>
NA_DEVICE bool is_plain(const CudaProblem& p, const Tile& tile, const KeyStep& step) {
  return is_inside(tile, S::box(), S::kFirstAxis, step, p.additional) &&
         (step.is_additional() || p.rel_pos_bias == nullptr) && p.scale > 0.0F;
}

// The keys of a box of the map that a lane's row sees. Bit 0 is the key of the lane's first score.
template <typename S>
struct Seen {
  KeyBits<S::kKeys / 32> keys;
  int32_t bias;  // index of that key's bias
};

template <typename S>
NA_DEVICE Seen<S> look(const CudaProblem& p, const RowWindow& row, const KeyStep& step) {
  const int place = dev::thread() % 4 * 2;
  int32_t at[kAxes];
  split(place, S::box(), at);
  Seen<S> seen;
  seen.keys = seen_keys<S>(row, step.first);
  NA_UNROLL
  for (uint32_t& word : seen.keys.word) word >>= place;
  seen.bias = row.bias;
  NA_UNROLL
  for (int a = S::kFirstAxis; a < kAxes; ++a) seen.bias += (step.first[a] + at[a]) * p.bias_distance[a];
  return seen;
}

// Distance of the bias of key `key` of a box, a multiple of eight, from that of key 0.
template <typename S>
NA_DEVICE int32_t bias_from_first(const CudaProblem& p, int key) {
  int32_t at[kAxes];
  split(key, S::box(), at);
  int32_t distance = at[2];
  if constexpr (S::kFirstAxis < 2) distance += at[1] * p.bias_distance[1];
  if constexpr (S::kFirstAxis < 1) distance += at[0] * p.bias_distance[0];
  return distance;
}

// Sets scores of keys that a row does not see to -inf: those of eight keys from `key` on, for the lane's first row or,
// with `half` 1, its second.
template <typename S>
NA_DEVICE void hide(float (&score)[4], int half, int key, const Seen<S>& seen) {
  NA_UNROLL
  for (int i = 0; i < 2; ++i) {
    const bool sees = (seen.keys.word[key / 32] >> (key % 32 + i) & 1) != 0;
    score[2 * half + i] = sees ? score[2 * half + i] : -INFINITY;
  }
}

// Sets scores past the last additional key to -inf, in both rows.
NA_DEVICE void hide_additional(const CudaProblem& p, float (&score)[4], int key, const KeyStep& step) {
  const int32_t left = p.additional - step.additional - dev::thread() % 4 * 2;  // counted from the lane's first key
  NA_UNROLL
  for (int i = 0; i < 4; ++i) score[i] = key + i % 2 < left ? score[i] : -INFINITY;
}

// Adds the biases of eight keys to scores in units of log2. To avoid branches, biases of unseen keys are read too:
// their indices lie outside the table by at most bias_reach, and the result is discarded.
template <typename S, typename BiasOf>
NA_DEVICE void add_bias(const CudaProblem& p, float (&score)[4], int half, int key, const Seen<S>& seen,
                        const BiasOf& bias_of) {
  NA_UNROLL
  for (int i = 0; i < 2; ++i) score[2 * half + i] += bias_of(seen.bias + bias_from_first<S>(p, key) + i);
}

// Turns products with eight keys of a box, for the lane's first row or, with `half` 1, its second, into scores in units
// of log2, with bias; keys that are not seen get -inf. `bias_of(index)`: the head's bias in that unit. To avoid
// branches, biases of unseen keys are read too: their indices lie outside the table by at most bias_reach, and the
// result is discarded.
template <typename S, bool kHasBias, typename BiasOf>
NA_DEVICE void place(const CudaProblem& p, float (&score)[4], int half, int key, const Seen<S>& seen,
                     const BiasOf& bias_of) {
  NA_UNROLL
  for (int i = 0; i < 2; ++i) {
    const bool sees = (seen.keys.word[key / 32] >> (key % 32 + i) & 1) != 0;
    float placed = score[2 * half + i] * (p.scale * kLog2E);
    if constexpr (kHasBias) placed += bias_of(seen.bias + bias_from_first<S>(p, key) + i);
    score[2 * half + i] = sees ? placed : -INFINITY;
  }
}

// Turns products with additional keys into scores; those past the last key get -inf.
NA_DEVICE void place_additional(const CudaProblem& p, float (&score)[4], int key, const KeyStep& step) {
  const int32_t left = p.additional - step.additional - dev::thread() % 4 * 2;  // counted from the lane's first key
  NA_UNROLL
  for (int i = 0; i < 4; ++i) score[i] = key + i % 2 < left ? score[i] * (p.scale * kLog2E) : -INFINITY;
}

// The softmax of a lane's two rows so far: the number subtracted from scores, in units of log2, and the lane's part of
// the sum of weights.
struct RunningSoftmax {
  // Limit by which scores may exceed the number subtracted from them. Past it, that number is raised and earlier sums
  // are scaled down; the slack makes this rare. Weights reach 2^8, which 16 bits hold as precisely as 1.
  static constexpr float kSlack = 8.0F;

  float peak[2] = {-INFINITY, -INFINITY};
  float total[2] = {};

  // Takes in a step's largest scores, times `unit`. Sets the number to subtract from scores and the factor for earlier
  // sums of values, and returns whether either changes in any row of the warp.
  NA_DEVICE bool raise(float (&highest)[2], float unit, float (&base)[2], float (&factor)[2]) {
    bool changes = false;
    NA_UNROLL
    for (int half = 0; half < 2; ++half) {
      highest[half] *= unit;
      NA_UNROLL
      for (int mask = 1; mask < 4; mask *= 2) {
        highest[half] = dev::max(highest[half], dev::shuffle_xor(highest[half], mask));
      }
      const bool rises = highest[half] > peak[half] + kSlack;
      highest[half] = rises ? highest[half] : peak[half];
      base[half] = highest[half] == -INFINITY ? 0.0F : highest[half];  // nothing seen yet
      factor[half] = dev::exp2(peak[half] - base[half]);
      changes = changes || rises;
      peak[half] = highest[half];
      total[half] *= factor[half];
    }
    return dev::any(changes);
  }

  // Turns scores into weights.
  NA_DEVICE void weigh(float (&score)[4], float unit, const float (&base)[2]) {
    NA_UNROLL
    for (int i = 0; i < 4; ++i) {
      score[i] = dev::exp2(score[i] * unit - base[i / 2]);
      total[i / 2] += score[i];
    }
  }
};

// Multiplies sums of values by the factor of RunningSoftmax::raise.
template <int kTiles>
NA_DEVICE void fade(float (&output)[kTiles][4], const float (&factor)[2]) {
  NA_UNROLL
  for (int n = 0; n < kTiles; ++n) {
    NA_UNROLL
    for (int i = 0; i < 4; ++i) output[n][i] *= factor[i / 2];
  }
}

// Computes those of the warp's 16 rows again in which what is not finite, at a key that they do not see, left no
// number.
template <typename T, typename S, int kChannels>
NA_DEVICE void mend_rows(const CudaProblem& p, const Tile& tile, int first) {
  dev::sync_warp();
  NA_NO_UNROLL
  for (int number = 0; number < 16; ++number) {
    int row = first + number;
    dev::forget(row);
    const int32_t at = query_position<S>(p, tile, row);
    if (at < 0) continue;
    mend_query<T, kChannels>(p, (tile.image * p.positions + at) * p.heads + tile.head, dev::thread() % 32);
  }
}

// Writes the warp's 16 rows, those of the tile from `first` on. Shared memory gathers them first, so that whole pieces
// of 16 bytes are written; `staged(row, piece)` is a piece's address there.
template <typename T, typename S, int kTiles, typename Staged>
NA_DEVICE void write_rows(const CudaProblem& p, const Tile& tile, int first, const RunningSoftmax& softmax,
                          const float (&output)[kTiles][4], const Staged& staged) {
  constexpr int kWidth = static_cast<int>(sizeof(T));
  constexpr int kPieces = kTiles * 8 * kWidth / 16;
  const int lane = dev::thread() % 32;
  float all = 0.0F;  // a sum of all results, no number if one of them is none
  NA_UNROLL
  for (int half = 0; half < 2; ++half) {
    float total = softmax.total[half];
    NA_UNROLL
    for (int mask = 1; mask < 4; mask *= 2) total += dev::shuffle_xor(total, mask);
    const float share = 1.0F / total;
    const int row = first + half * 8 + lane / 4;
    NA_UNROLL
    for (int n = 0; n < kTiles; ++n) {
      const int byte = (n * 8 + lane % 4 * 2) * kWidth;
      const float low = output[n][2 * half] * share;
      const float high = output[n][2 * half + 1] * share;
      all += low + high;
      dev::store_two<T>(staged(row, byte / 16) + static_cast<dev::Shared>(byte % 16), low, high);
    }
    const int32_t at = query_position<S>(p, tile, row);
    if (p.lse != nullptr && lane % 4 == 0 && at >= 0) {
      p.lse[(tile.image * p.positions + at) * p.heads + tile.head] = softmax.peak[half] * kLn2 + dev::log(total);
    }
  }
  dev::sync_warp();
  T* image = static_cast<T*>(p.output) + (tile.image * p.positions * p.heads + tile.head) * p.value_dim;
  const int piece = lane % kPieces;
  if (piece * 16 < p.value_dim * kWidth) {
    for (int row = first + lane / kPieces; row < first + 16; row += 32 / kPieces) {
      const int32_t at = query_position<S>(p, tile, row);
      if (at < 0) continue;
      dev::store_global16(image + int64_t{at} * p.heads * p.value_dim + piece * (16 / kWidth),
                          dev::load_shared16(staged(row, piece)));
    }
  }
  if (dev::any(all != all)) mend_rows<T, S, plain_channels(kTiles * 8)>(p, tile, first);
}

}  // namespace na_deploy::cuda
