// Attention of a whole dilation group that one window covers, as in DiNAT's dilated layers: every query sees every key.
//
// One query for each lane of whole vectors. A few left over, such as one of the 49 of a 7x7 group with vectors of
// sixteen, would fill another vector with lanes without a query; they are computed one by one, with channels and then
// keys in lanes. Scores begin as biases, their maximum is taken as they are stored, and nothing is masked.
#include "targets.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "group_kernel.cpp"
#include <hwy/foreach_target.h>
#include <hwy/highway.h>

#include <algorithm>
#include <cstdint>

#include "bias.h"
#include "exponential-inl.h"
#include "group_products-inl.h"
#include "lanes-inl.h"
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
class GroupKernel {
  static constexpr bool kDots = N::kWidth > 1;
  using Number = typename N::T;

 public:
  GroupKernel(const na_params& params, const Plan& plan, const Scratch& scratch)
      : params_(params), plan_(plan), scratch_(scratch), count_(plan.used_lanes), steps_(params.head_dim / N::kWidth) {
    const int64_t over = count_ % kVector;
    const bool pays = count_ > kVector && over <= kVector / 4;
    few_ = pays && steps_ % kVector == 0 ? over : 0;  // their keys are read in whole vectors
    lanes_ = (count_ - few_ + kVector - 1) / kVector * kVector;
    padded_count_ = (count_ + kVector - 1) / kVector * kVector;
    few_score_ = scratch.score + count_ * lanes_;
    few_query_ = scratch.query + plan.padded_head_dim * lanes_;
    int64_t i = 0;
    int64_t key[kAxes];
    for (key[0] = 0; key[0] < plan.axis[0].kernel_size; ++key[0]) {
      for (key[1] = 0; key[1] < plan.axis[1].kernel_size; ++key[1]) {
        for (key[2] = 0; key[2] < plan.axis[2].kernel_size; ++key[2], ++i) {
          key_at_[i] = value_at_[i] = 0;
          for (int a = 0; a < kAxes; ++a) {
            key_at_[i] += key[a] * plan.axis[a].dilation * plan.key.axis[a];
            value_at_[i] += key[a] * plan.axis[a].dilation * plan.value.axis[a];
          }
        }
      }
    }
  }

  void run(int64_t task) {
    place_group(plan_, params_, task, tile_);
    load_bias();
    load_all_queries();
    load_keys();
    score();
    softmax();
    add_values();
    store_outputs<T>(d_, params_, plan_, tile_, maximum_, sum_, scratch_.output);
  }

 private:
  void load_bias() {
    if (plan_.bias_elements == 0 || bias_head_ == tile_.head) return;
    bias_head_ = tile_.head;
    if (params_.prepared_bias != nullptr) {
      bias_ = params_.prepared_bias + tile_.head * plan_.spread.elements;
    } else {
      spread_bias(plan_, params_, tile_.head, scratch_.spread);
      bias_ = scratch_.spread;
    }
  }

  void load_all_queries() {
    float* copies = scratch_.key;  // keys are not loaded yet
    load_queries<N, T>(d_, params_, plan_, tile_, lanes_, copies, scratch_.query);
    const auto* query = static_cast<const T*>(params_.query) + tile_.query_at;
    const Float scale = hn::Set(d_, plan_.scale);
    for (int64_t i = 0; i < few_; ++i) {
      const float* row = query_row<N>(d_, query + plan_.lane_query[lanes_ + i], params_.head_dim, copies);
      float* to = few_query_ + i * plan_.padded_head_dim;
      for (int64_t c = 0; c < steps_; c += kVector) hn::Store(load_query<N>(d_, scale, row + c), d_, to + c);
    }
  }

  void load_keys() {
    const int64_t key_head = tile_.head / (params_.heads / params_.key_heads);
    const bool packed = params_.packed != 0;
    constexpr int64_t kFirst[kAxes] = {};
    const T* key = static_cast<const T*>(packed ? params_.query : params_.key) +
                   offset_of(plan_, plan_.key, tile_, key_head, kFirst);
    const T* value = static_cast<const T*>(packed ? params_.query : params_.value) +
                     offset_of(plan_, plan_.value, tile_, key_head, kFirst);
    if constexpr (kDots || sizeof(T) == sizeof(float)) {
      for (int64_t i = 0; i < count_; ++i) scratch_.key_rows[i] = reinterpret_cast<const float*>(key + key_at_[i]);
    } else {
      for (int64_t i = 0; i < count_; ++i) {
        float* row = scratch_.key + i * plan_.padded_head_dim;
        load_row(d_, key + key_at_[i], params_.head_dim, plan_.padded_head_dim, row);
        scratch_.key_rows[i] = row;
      }
    }
    const int64_t padded = plan_.padded_value_dim;
    if constexpr (kDots) {
      auto* pair = reinterpret_cast<Number*>(scratch_.value);
      for (int64_t i = 0; i < count_; i += 2, pair += 2 * padded) {
        const T* odd = i + 1 < count_ ? value + value_at_[i + 1] : nullptr;
        interleave_rows(d_, value + value_at_[i], odd, params_.value_dim, padded, pair);
      }
    } else {
      for (int64_t i = 0; i < count_; ++i) {
        load_row(d_, value + value_at_[i], params_.value_dim, padded, scratch_.value + i * padded);
      }
    }
  }

  void score() {
    GroupScores<N> scores;
    scores.scale = plan_.scale;
    scores.query = reinterpret_cast<const Number*>(scratch_.query);
    scores.keys = reinterpret_cast<const Number* const*>(scratch_.key_rows);
    scores.steps = steps_;
    scores.count = count_;
    scores.lanes = lanes_;
    scores.bias = bias_;
    scores.bias_step = plan_.lanes;
    scores.score = scratch_.score;
    scores.maximum = maximum_;
    scores.few = few_;
    scores.few_query = reinterpret_cast<const Number*>(few_query_);
    scores.few_query_step = plan_.padded_head_dim * N::kWidth;
    scores.few_score = few_score_;
    scores.few_score_step = padded_count_;
    score_group(d_, scores);
  }

  void softmax() {
    for (int64_t lane = 0; lane < lanes_; lane += kVector) {
      const Float maximum = hn::Load(d_, maximum_ + lane);
      hn::Store(exponentials<kDots>(d_, scratch_.score + lane, lanes_, count_, maximum), d_, sum_ + lane);
    }
    for (int64_t i = 0; i < few_; ++i) few_softmax(i);
  }

  // The same of a query with keys in lanes.
  void few_softmax(int64_t i) {
    float* score = few_score_ + i * padded_count_;
    for (int64_t key = count_; key < padded_count_; ++key) score[key] = kMasked;
    Float most = hn::Load(d_, score);
    for (int64_t key = kVector; key < padded_count_; key += kVector) most = hn::Max(most, hn::Load(d_, score + key));
    const float maximum = hn::ReduceMax(d_, most);
    Float sum = hn::Zero(d_);
    for (int64_t key = 0; key < padded_count_; key += kVector) {
      const Float weights = exp2_of_negative(d_, hn::Sub(hn::Load(d_, score + key), hn::Set(d_, maximum)));
      sum = hn::Add(sum, weights);
      if constexpr (kDots) {
        const hn::Rebind<uint16_t, FloatTag> half;
        hn::StoreU(hn::TruncateTo(half, rounded_halves(d_, weights)), half, reinterpret_cast<uint16_t*>(score) + key);
      } else {
        hn::Store(weights, d_, score + key);
      }
    }
    maximum_[lanes_ + i] = maximum;
    sum_[lanes_ + i] = hn::ReduceSum(d_, sum);
  }

  void add_values() {
    const int64_t whole = count_ - few_;
    const int64_t padded = plan_.padded_value_dim;
    const int64_t rows = (count_ + N::kWidth - 1) / N::kWidth;
    const auto* value = reinterpret_cast<const Number*>(scratch_.value);
    const auto* weight = reinterpret_cast<const Number*>(scratch_.score);
    weigh_values<N>(d_, value, padded, weight, lanes_ * N::kWidth, N::kWidth, rows, whole, scratch_.output);
    weigh_values<N>(d_, value, padded, reinterpret_cast<const Number*>(few_score_), N::kWidth,
                    padded_count_ * (static_cast<int64_t>(sizeof(float) / sizeof(Number))), rows, few_,
                    scratch_.output + whole * padded);
  }

  const FloatTag d_;
  const na_params& params_;
  const Plan& plan_;
  const Scratch scratch_;
  const int64_t count_;       // queries, and keys
  const int64_t steps_;       // numbers of a row
  int64_t lanes_ = 0;         // whole vectors
  int64_t few_ = 0;           // queries left over
  int64_t padded_count_ = 0;  // keys of a query left over, in whole vectors
  float* few_query_ = nullptr;
  float* few_score_ = nullptr;
  Tile tile_;
  int64_t bias_head_ = -1;
  const float* bias_ = nullptr;
  int64_t key_at_[kMaxLanes];
  int64_t value_at_[kMaxLanes];
  HWY_ALIGN float maximum_[kMaxLanes];
  HWY_ALIGN float sum_[kMaxLanes];
};

template <typename T, class N>
void run_group_tasks(const na_params& params, const Plan& plan, int64_t first, int64_t last, const Scratch& scratch) {
  GroupKernel<T, N> kernel(params, plan, scratch);
  for (int64_t task = first; task < last; ++task) kernel.run(task);
}

void run_groups(const na_params& params, const Plan& plan, int64_t first, int64_t last, const Scratch& scratch) {
  switch (params.dtype) {
    case NA_FLOAT16:
      return run_group_tasks<hwy::float16_t, Singles>(params, plan, first, last, scratch);
    case NA_BFLOAT16:
      if (plan.dots) return run_group_tasks<hwy::bfloat16_t, Pairs>(params, plan, first, last, scratch);
      return run_group_tasks<hwy::bfloat16_t, Singles>(params, plan, first, last, scratch);
    default:
      return run_group_tasks<float, Singles>(params, plan, first, last, scratch);
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace na_deploy::cpu
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace na_deploy::cpu {

HWY_EXPORT(run_groups);

void run_in_groups(const na_params& params, const Plan& plan, int64_t first, int64_t last, const Scratch& scratch) {
  HWY_DYNAMIC_DISPATCH(run_groups)(params, plan, first, last, scratch);
}

}  // namespace na_deploy::cpu
#endif  // HWY_ONCE
