// Attention of one tile of queries at a time, one query per lane of a few vectors: every rank, attribute and type.
//
// Per block of keys: scores[key][lane] = sum over channels of query[channel][lane] * key[channel] (a broadcast), bias
// and mask; running maximum and sum in lanes (online softmax, Milakov and Gimelshein, arXiv:1805.02867); then
// output[lane][channel] += weight[key][lane] * value[key][channel], four lanes at a time, over the keys those four see.
#include "targets.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "tile_kernel.cpp"
#include <hwy/foreach_target.h>
#include <hwy/highway.h>

#include <algorithm>
#include <cstdint>

#include "../core/window.h"
#include "bias.h"
#include "exponential-inl.h"
#include "lanes-inl.h"
#include "na_cpu.h"
#include "plan.h"
#include "products-inl.h"
#include "rows-inl.h"
#include "tile.h"
#include "vectors-inl.h"

HWY_BEFORE_NAMESPACE();

namespace na_deploy::cpu {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

// T: element of the tensors. N: numbers of the products, Singles or, for bfloat16, Pairs.
template <typename T, class N>
class TileKernel {
  static constexpr bool kDots = N::kWidth > 1;
  using Number = typename N::T;

 public:
  TileKernel(const na_params& params, const Plan& plan, const Scratch& scratch)
      : params_(params), plan_(plan), scratch_(scratch), lanes_(plan.lanes) {
    for (int64_t lane = 0; lane < plan.used_lanes; ++lane) {
      int64_t place = 0;
      for (int a = 0; a < kAxes; ++a) place = place * (2 * plan.axis[a].kernel_size - 1) + plan.place[lane][a];
      bias_place_[lane] = static_cast<int32_t>(place);
    }
  }

  void run(int64_t task) {
    if (!place_tile(plan_, params_, task, scratch_.visible, tile_)) return;
    load_queries<N, T>(d_, params_, plan_, tile_, lanes_, scratch_.key, scratch_.query);  // keys are not loaded yet
    load_bias();
    std::fill_n(maximum_, lanes_, kMasked);
    std::fill_n(sum_, lanes_, 0.0F);
    first_block_ = true;
    runs_ = filled_ = 0;
    for (int64_t k0 = tile_.axis[0].first; k0 < tile_.axis[0].last; ++k0) {
      for (int64_t k1 = tile_.axis[1].first; k1 < tile_.axis[1].last; ++k1) {
        const int64_t last = tile_.axis[2].last;
        for (int64_t k2 = tile_.axis[2].first; k2 < last;) k2 += add_run(k0, k1, k2, last - k2);
      }
    }
    for (int64_t k = 0; k < params_.additional;) k += add_run(-1, 0, k, params_.additional - k);
    finish_block();
    store_outputs<T>(d_, params_, plan_, tile_, maximum_, sum_, scratch_.output);
  }

 private:
  void load_bias() {
    if (plan_.bias_elements == 0 || bias_head_ == tile_.head) return;
    bias_head_ = tile_.head;
    if (params_.prepared_bias != nullptr && plan_.spread.elements != 0) {
      spread_ = params_.prepared_bias + tile_.head * plan_.spread.elements;
    } else if (plan_.spread_per_call) {
      spread_bias(plan_, params_, tile_.head, scratch_.spread);
      spread_ = scratch_.spread;
    } else {
      bias_ = widened_bias(plan_, params_, tile_.head, scratch_.bias);
    }
  }

  // Puts up to `count` keys from (k0, k1, k2) on into the block and returns how many were taken.
  int64_t add_run(int64_t k0, int64_t k1, int64_t k2, int64_t count) {
    if (filled_ == plan_.block) {
      finish_block();
      runs_ = filled_ = 0;
    }
    KeyRun& run = scratch_.runs[runs_++];
    run = {filled_, std::min(count, plan_.block - filled_), {k0, k1, k2}, nullptr, 0};
    load_keys(run);
    filled_ += run.count;
    return run.count;
  }

  void load_keys(KeyRun& run) {
    const int64_t key_head = tile_.head / (params_.heads / params_.key_heads);
    const T* key;
    const T* value;
    int64_t key_step;
    int64_t value_step;
    if (run.key[0] < 0) {
      const int64_t row = (tile_.batch * params_.additional + run.key[2]) * params_.key_heads + key_head;
      key = static_cast<const T*>(params_.additional_key) + row * params_.head_dim;
      value = static_cast<const T*>(params_.additional_value) + row * params_.value_dim;
      key_step = params_.key_heads * params_.head_dim;
      value_step = params_.key_heads * params_.value_dim;
    } else {
      const bool packed = params_.packed != 0;
      key = static_cast<const T*>(packed ? params_.query : params_.key) +
            offset_of(plan_, plan_.key, tile_, key_head, run.key);
      value = static_cast<const T*>(packed ? params_.query : params_.value) +
              offset_of(plan_, plan_.value, tile_, key_head, run.key);
      key_step = plan_.axis[2].dilation * plan_.key.axis[2];
      value_step = plan_.axis[2].dilation * plan_.value.axis[2];
    }
    const float** key_rows = scratch_.key_rows + run.at;
    if constexpr (kDots) {
      for (int64_t i = 0; i < run.count; ++i) {
        key_rows[i] = reinterpret_cast<const float*>(key + i * key_step);
        scratch_.value_rows[run.at + i] = value + i * value_step;
      }
      return;  // pairs of values are made once the block is full
    } else if constexpr (sizeof(T) == sizeof(float)) {
      for (int64_t i = 0; i < run.count; ++i) key_rows[i] = key + i * key_step;
    } else {
      float* row = scratch_.key + run.at * plan_.padded_head_dim;
      for (int64_t i = 0; i < run.count; ++i, row += plan_.padded_head_dim) {
        load_row(d_, key + i * key_step, params_.head_dim, plan_.padded_head_dim, row);
        key_rows[i] = row;
      }
    }
    if constexpr (sizeof(T) == sizeof(float)) {
      if (plan_.values_in_place) {
        run.value = value;
        run.value_step = value_step;
        return;
      }
    }
    float* value_row = scratch_.value + run.at * plan_.padded_value_dim;
    run.value = value_row;
    run.value_step = plan_.padded_value_dim;
    for (int64_t i = 0; i < run.count; ++i, value += value_step, value_row += plan_.padded_value_dim) {
      load_row(d_, value, params_.value_dim, plan_.padded_value_dim, value_row);
    }
  }

  // Adds bias and mask to the scores of a run for the vector of lanes from `lane` on, and returns their maximum.
  Float mask(const KeyRun& run, int64_t lane, Float maximum) const {
    float* score = scratch_.score + run.at * lanes_ + lane;
    if (run.key[0] < 0 || (tile_.sees_all && plan_.bias_elements == 0)) {
      for (int64_t i = 0; i < run.count; ++i) maximum = hn::Max(maximum, hn::Load(d_, score + i * lanes_));
      return maximum;
    }
    if (spread_ != nullptr) {
      if (tile_.sees_all) return mask<true, true>(run, lane, spread_at(run), 0, maximum);
      return mask<true, false>(run, lane, spread_at(run), 0, maximum);
    }
    int64_t place = 0;
    for (int a = 0; bias_ != nullptr && a < kAxes; ++a) {
      const int64_t kernel_size = plan_.axis[a].kernel_size;
      place = place * (2 * kernel_size - 1) + run.key[a] - tile_.axis[a].origin + kernel_size - 1;
    }
    return mask<false, false>(run, lane, nullptr, place, maximum);
  }

  const float* spread_at(const KeyRun& run) const {
    int64_t row = 0;
    for (int a = 0; a < kAxes; ++a) {
      const int64_t first = plan_.axis[a].kernel_size - 1 - plan_.spread.base[a];
      row = row * plan_.spread.width[a] + run.key[a] - tile_.axis[a].origin + first;
    }
    return spread_ + row * lanes_;
  }

  template <bool kSpread, bool kSeesAll>
  HWY_INLINE Float mask(const KeyRun& run, int64_t lane, const float* spread, int64_t place, Float maximum) const {
    float* score = scratch_.score + run.at * lanes_ + lane;
    uint64_t row = 0;
    const uint64_t* column = nullptr;
    if (!tile_.sees_all) {
      row =
          scratch_.visible[0][run.key[0] - tile_.axis[0].first] & scratch_.visible[1][run.key[1] - tile_.axis[1].first];
      column = scratch_.visible[2] + run.key[2] - tile_.axis[2].first;
    }
    for (int64_t i = 0; i < run.count; ++i, score += lanes_) {
      Float scores = hn::Load(d_, score);
      if constexpr (kSpread) scores = hn::Add(scores, hn::Load(d_, spread + i * lanes_ + lane));
      if constexpr (!kSeesAll) {
        const auto sees = lanes_of((tile_.sees_all ? tile_.used : row & column[i]) >> lane);
        if (!kSpread && bias_ != nullptr) {
          const Int at = hn::Sub(hn::Set(di_, static_cast<int32_t>(place + i)), hn::Load(di_, bias_place_ + lane));
          const Float bias = hn::GatherIndex(d_, bias_, hn::IfThenElseZero(hn::RebindMask(di_, sees), at));
          scores = hn::MulAdd(bias, hn::Set(d_, kLog2E), scores);
        }
        scores = hn::IfThenElse(sees, scores, hn::Set(d_, kMasked));
      }
      maximum = hn::Max(maximum, scores);
      hn::Store(scores, d_, score);
    }
    return maximum;
  }

  // Scores, softmax and the second product of the keys in the block.
  void finish_block() {
    score_block<N>(d_, plan_.scale, reinterpret_cast<const Number*>(scratch_.query),
                   reinterpret_cast<const Number* const*>(scratch_.key_rows), params_.head_dim / N::kWidth, filled_,
                   scratch_.score, lanes_);
    HWY_ALIGN float keep[kMaxLanes];
    for (int64_t lane = 0; lane < lanes_; lane += kVector) {
      const Float before = hn::Load(d_, maximum_ + lane);
      Float maximum = before;
      for (const KeyRun* run = scratch_.runs; run != scratch_.runs + runs_; ++run) maximum = mask(*run, lane, maximum);
      const Float kept = exp2_of_negative(d_, hn::Sub(before, maximum));
      hn::Store(maximum, d_, maximum_ + lane);
      hn::Store(kept, d_, keep + lane);
      const Float sum = exponentials<kDots>(d_, scratch_.score + lane, lanes_, filled_, maximum);
      hn::Store(hn::MulAdd(hn::Load(d_, sum_ + lane), kept, sum), d_, sum_ + lane);
    }
    if constexpr (kDots) pair_values();
    for (int64_t quad = 0; quad * kQuad < plan_.used_lanes; ++quad) {
      if ((tile_.used >> (quad * kQuad) & 0xFU) != 0) add_values(quad, first_block_ ? nullptr : keep + quad * kQuad);
    }
    first_block_ = false;
  }

  // Interleaves the values of the block's keys in pairs.
  void pair_values() {
    if constexpr (kDots) {
      Number* pair = pairs();
      for (int64_t i = 0; i < filled_; i += 2, pair += 2 * plan_.padded_value_dim) {
        const auto* even = static_cast<const T*>(scratch_.value_rows[i]);
        const auto* odd = i + 1 < filled_ ? static_cast<const T*>(scratch_.value_rows[i + 1]) : nullptr;
        interleave_rows(d_, even, odd, params_.value_dim, plan_.padded_value_dim, pair);
      }
    }
  }

  Number* pairs() const { return reinterpret_cast<Number*>(scratch_.value); }

  // Adds the block's weighted values to four lanes' outputs.
  void add_values(int64_t quad, const float* keep) {
    WeightedRun<N> runs[kMaxRuns];
    int64_t count = 0;
    int64_t paired = 0;  // keys of the block before this one are in the runs, with dots
    int64_t first[kAxes];
    int64_t last[kAxes];
    for (int a = 0; a < kAxes; ++a) {
      first[a] = tile_.axis[a].quad_first[quad];
      last[a] = tile_.axis[a].quad_last[quad];
    }
    for (const KeyRun* run = scratch_.runs; run != scratch_.runs + runs_; ++run) {
      int64_t from = 0;
      int64_t to = run->count;
      if (run->key[0] >= 0) {
        if (run->key[0] < first[0] || run->key[0] >= last[0] || run->key[1] < first[1] || run->key[1] >= last[1]) {
          continue;
        }
        from = std::max<int64_t>(first[2] - run->key[2], 0);
        to = std::min(last[2] - run->key[2], run->count);
        if (from >= to) continue;
      }
      WeightedRun<N> found;
      if constexpr (kDots) {
        // Whole pairs; a key that the lanes do not see has no weight.
        const int64_t begin = std::max((run->at + from) / 2 * 2, paired);
        const int64_t end = (run->at + to + 1) / 2 * 2;
        if (begin >= end) continue;
        paired = end;
        found = {pairs() + begin * plan_.padded_value_dim, 2 * plan_.padded_value_dim,
                 reinterpret_cast<const Number*>(scratch_.score + begin / 2 * lanes_ + quad * kQuad),
                 (end - begin) / 2};
      } else {
        found = {run->value + from * run->value_step, run->value_step,
                 scratch_.score + (run->at + from) * lanes_ + quad * kQuad, to - from};
      }
      if (count > 0 && continues(runs[count - 1], found)) {
        runs[count - 1].count += found.count;
        continue;
      }
      runs[count++] = found;
      if (count == kMaxRuns) {
        add_runs(runs, count, quad, keep);
        count = 0;
        keep = kOnes;
      }
    }
    add_runs(runs, count, quad, keep);
  }

  // Returns whether a run directly continues another.
  bool continues(const WeightedRun<N>& run, const WeightedRun<N>& next) const {
    return next.value == run.value + run.count * run.step && next.step == run.step &&
           next.weight == run.weight + run.count * lanes_ * N::kWidth;
  }

  void add_runs(const WeightedRun<N>* runs, int64_t count, int64_t quad, const float* keep) {
    const int64_t dim = plan_.padded_value_dim;
    float* output = scratch_.output + quad * kQuad * dim;
    int64_t c = 0;
#if NA_DEPLOY_MANY_REGISTERS
    for (; c + 4 * kVector <= dim; c += 4 * kVector) add_channels<4>(runs, count, c, keep, output);
#endif
    for (; c + 2 * kVector <= dim; c += 2 * kVector) add_channels<2>(runs, count, c, keep, output);
    for (; c < dim; c += kVector) add_channels<1>(runs, count, c, keep, output);
  }

  template <int kVectors>
  void add_channels(const WeightedRun<N>* runs, int64_t count, int64_t c, const float* keep, float* output) {
    accumulate<N, kVectors>(d_, runs, count, c, keep, output, plan_.padded_value_dim, lanes_);
  }

  static constexpr int64_t kMaxRuns = 32;
  static constexpr float kOnes[kQuad] = {1.0F, 1.0F, 1.0F, 1.0F};

  const FloatTag d_;
  const IntTag di_;
  const na_params& params_;
  const Plan& plan_;
  const Scratch scratch_;
  const int64_t lanes_;  // whole vectors of the tile
  Tile tile_;

  // The head's bias: spread, or in its own order together with the lanes' places in it.
  int64_t bias_head_ = -1;
  const float* spread_ = nullptr;
  const float* bias_ = nullptr;
  HWY_ALIGN int32_t bias_place_[kMaxLanes] = {};

  int64_t runs_ = 0;
  int64_t filled_ = 0;
  bool first_block_ = true;
  HWY_ALIGN float maximum_[kMaxLanes];
  HWY_ALIGN float sum_[kMaxLanes];
};

template <typename T, class N>
void run_tile_tasks(const na_params& params, const Plan& plan, int64_t first, int64_t last, const Scratch& scratch) {
  TileKernel<T, N> kernel(params, plan, scratch);
  for (int64_t task = first; task < last; ++task) kernel.run(task);
}

void run_tasks(const na_params& params, const Plan& plan, int64_t first, int64_t last, const Scratch& scratch) {
  switch (params.dtype) {
    case NA_FLOAT16:
      return run_tile_tasks<hwy::float16_t, Singles>(params, plan, first, last, scratch);
    case NA_BFLOAT16:
      if (plan.dots) return run_tile_tasks<hwy::bfloat16_t, Pairs>(params, plan, first, last, scratch);
      return run_tile_tasks<hwy::bfloat16_t, Singles>(params, plan, first, last, scratch);
    default:
      return run_tile_tasks<float, Singles>(params, plan, first, last, scratch);
  }
}

Target target() { return {kVector, HWY_NATIVE_DOT_BF16 != 0}; }

const char* target_name() { return hwy::TargetName(HWY_TARGET); }

}  // namespace HWY_NAMESPACE
}  // namespace na_deploy::cpu
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace na_deploy::cpu {

HWY_EXPORT(run_tasks);
HWY_EXPORT(target);
HWY_EXPORT(target_name);

void run_in_tiles(const na_params& params, const Plan& plan, int64_t first, int64_t last, const Scratch& scratch) {
  HWY_DYNAMIC_DISPATCH(run_tasks)(params, plan, first, last, scratch);
}

Target target_in_use() { return HWY_DYNAMIC_DISPATCH(target)(); }

}  // namespace na_deploy::cpu

extern "C" {

const char* na_cpu_target(void) {
  using namespace na_deploy::cpu;
  return HWY_DYNAMIC_DISPATCH(target_name)();
}

}  // extern "C"
#endif  // HWY_ONCE
