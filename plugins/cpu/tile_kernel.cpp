// Attention of one tile of queries at a time, one query per SIMD lane: every rank, attribute and type.
//
// Per block of keys: scores[key][lane] = sum over channels of query[channel][lane] * key[channel] (a broadcast), bias and
// mask; running maximum and sum in lanes (online softmax, Milakov and Gimelshein, arXiv:1805.02867); then
// output[lane][channel] += weight[key][lane] * value[key][channel], four lanes at a time, over the keys those four see.
#include "targets.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "tile_kernel.cpp"
#include <hwy/foreach_target.h>
#include <hwy/highway.h>

#include <algorithm>
#include <cmath>
#include <cstdint>

#include "../core/window.h"
#include "elements-inl.h"
#include "exponential-inl.h"
#include "na_cpu.h"
#include "plan.h"

HWY_BEFORE_NAMESPACE();
namespace na_deploy {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

using FloatTag = hn::CappedTag<float, kMaxLanes>;
using Float = hn::Vec<FloatTag>;
using IntTag = hn::RebindToSigned<FloatTag>;
using Int = hn::Vec<IntTag>;

// Below the lower bound a score is a masked one. Finite, so that differences are never NaN.
constexpr float kMasked = -1e30F;
constexpr float kMaskedBound = -5e29F;
constexpr int64_t kQuad = 4;  // lanes that the second product takes at once

// Neighbouring keys along the last axis, standing in the block from `at` on.
struct Run {
  int64_t at;
  int64_t count;
  int64_t key0, key1, key2;  // elements of the dilation group; key0 < 0: additional keys, which all queries see
};

// What a tile's queries see, per lane; lanes without a query see nothing.
struct Lanes {
  HWY_ALIGN int32_t start[kAxes][kMaxLanes];
  HWY_ALIGN int32_t end[kAxes][kMaxLanes];
  HWY_ALIGN int32_t bias[kMaxLanes];  // what to add to a key's place in the bias table
  int64_t position[kMaxLanes];        // of the query in the output and, with its strides, in query
  int64_t query_at[kMaxLanes];
  int64_t output_at[kMaxLanes];
  bool used[kMaxLanes];
  int64_t quad_start[kMaxLanes / kQuad][kAxes];  // union over four lanes
  int64_t quad_end[kMaxLanes / kQuad][kAxes];
};

template <typename T>
class TileKernel {
 public:
  TileKernel(const na_params& params, const Plan& plan, const Scratch& scratch)
      : params_(params), plan_(plan), scratch_(scratch), lane_count_(static_cast<int64_t>(hn::Lanes(d_))) {}

  void run(int64_t task) {
    if (!place(task)) return;
    load_queries();
    load_bias();
    maximum_ = hn::Set(d_, kMasked);
    sum_ = hn::Zero(d_);
    first_block_ = true;
    start_block();
    for (int64_t k0 = first_[0]; k0 < last_[0]; ++k0) {
      for (int64_t k1 = first_[1]; k1 < last_[1]; ++k1) {
        for (int64_t k2 = first_[2]; k2 < last_[2];) {
          k2 += add_run(k0, k1, k2, last_[2] - k2);
        }
      }
    }
    for (int64_t k = 0; k < params_.additional;) k += add_run(-1, 0, k, params_.additional - k);
    finish_block();
    store_outputs();
  }

 private:
  // Finds the task's tile; false if the tile lies past the end of its dilation group.
  bool place(int64_t task) {
    int64_t place[kAxes];
    for (int a = kAxes - 1; a >= 0; --a) {
      const int64_t count = plan_.axis[a].dilation * plan_.axis[a].tiles;
      place[a] = task % count;
      task /= count;
    }
    head_ = task % params_.heads;
    batch_ = task / params_.heads;
    int64_t origin[kAxes];
    int64_t size[kAxes];
    for (int a = 0; a < kAxes; ++a) {
      const AxisPlan& axis = plan_.axis[a];
      group_[a] = place[a] / axis.tiles;
      origin[a] = place[a] % axis.tiles * axis.tile;
      size[a] = group_length(axis.length, axis.dilation, group_[a]);
      if (origin[a] >= size[a]) return false;
    }
    set_lanes(origin, size);
    return true;
  }

  void set_lanes(const int64_t* origin, const int64_t* size) {
    Window window[kAxes][kMaxLanes];
    int64_t count[kAxes];
    for (int a = 0; a < kAxes; ++a) {
      const AxisPlan& axis = plan_.axis[a];
      count[a] = std::min(axis.tile, size[a] - origin[a]);
      for (int64_t i = 0; i < count[a]; ++i) {
        window[a][i] = group_window(origin[a] + i, size[a], axis.kernel_size, axis.stride, axis.is_causal);
      }
      first_[a] = window[a][0].start;
      last_[a] = window[a][count[a] - 1].end;
      for (int64_t i = 0; i < count[a]; ++i) last_[a] = std::max(last_[a], window[a][i].end);
    }
    // The last axis is the slowest, so that four neighbouring lanes see nearly the same keys along it.
    int64_t lane = 0;
    for (int64_t i2 = 0; i2 < count[2]; ++i2) {
      for (int64_t i0 = 0; i0 < count[0]; ++i0) {
        for (int64_t i1 = 0; i1 < count[1]; ++i1, ++lane) {
          const int64_t at[kAxes] = {i0, i1, i2};
          int64_t bias = 0;
          int64_t query = plan_.query.offset + batch_ * plan_.query.batch + head_ * plan_.query.head;
          int64_t output = batch_ * plan_.output.batch + head_ * plan_.output.head;
          for (int a = 0; a < kAxes; ++a) {
            const AxisPlan& axis = plan_.axis[a];
            lanes_.start[a][lane] = static_cast<int32_t>(window[a][at[a]].start - first_[a]);
            lanes_.end[a][lane] = static_cast<int32_t>(window[a][at[a]].end - first_[a]);
            const int64_t element = origin[a] + at[a];
            bias = bias * (2 * axis.kernel_size - 1) + first_[a] - element + axis.kernel_size - 1;
            const int64_t position = element * axis.dilation + group_[a];
            query += position * plan_.query.axis[a];
            output += position * plan_.output.axis[a];
          }
          lanes_.bias[lane] = static_cast<int32_t>(bias);
          lanes_.query_at[lane] = query;
          lanes_.output_at[lane] = output;
        }
      }
    }
    used_ = lane;
    for (; lane < lane_count_; ++lane) {
      for (int a = 0; a < kAxes; ++a) lanes_.start[a][lane] = lanes_.end[a][lane] = 0;
      lanes_.bias[lane] = 0;
    }
    for (int64_t quad = 0; quad * kQuad < used_; ++quad) {
      for (int a = 0; a < kAxes; ++a) {
        int64_t start = last_[a];
        int64_t end = 0;
        for (int64_t i = quad * kQuad; i < std::min((quad + 1) * kQuad, used_); ++i) {
          start = std::min<int64_t>(start, lanes_.start[a][i]);
          end = std::max<int64_t>(end, lanes_.end[a][i]);
        }
        lanes_.quad_start[quad][a] = start + first_[a];
        lanes_.quad_end[quad][a] = end + first_[a];
      }
    }
  }

  void load_queries() {
    const auto* query = static_cast<const T*>(params_.query);
    if (used_ < lane_count_) std::fill_n(scratch_.query, params_.head_dim * lane_count_, 0.0F);
    float* row = scratch_.key;  // not in use yet
    for (int64_t lane = 0; lane < used_; ++lane) {
      load_row(d_, query + lanes_.query_at[lane], params_.head_dim, row);
      for (int64_t c = 0; c < params_.head_dim; ++c) scratch_.query[c * lane_count_ + lane] = row[c] * plan_.scale;
    }
  }

  void load_bias() {
    if (plan_.bias_size == 0) return;
    const auto* table = static_cast<const T*>(params_.rel_pos_bias) + head_ * plan_.bias_size;
    if constexpr (sizeof(T) == sizeof(float)) {
      bias_ = table;
    } else if (bias_head_ != head_) {
      load_row(d_, table, plan_.bias_size, scratch_.bias);
      bias_ = scratch_.bias;
      bias_head_ = head_;
    }
  }

  void start_block() {
    runs_ = 0;
    filled_ = 0;
    block_maximum_ = hn::Set(d_, kMasked);
  }

  // Puts up to `count` keys from (k0, k1, k2) on into the block and returns how many were taken.
  int64_t add_run(int64_t k0, int64_t k1, int64_t k2, int64_t count) {
    if (filled_ == plan_.block) {
      finish_block();
      start_block();
    }
    const Run run{filled_, std::min(count, plan_.block - filled_), k0, k1, k2};
    load_keys(run);
    score(run);
    run_list()[runs_++] = run;
    filled_ += run.count;
    return run.count;
  }

  Run* run_list() const { return reinterpret_cast<Run*>(scratch_.runs); }

  void load_keys(const Run& run) {
    const int64_t key_head = head_ / (params_.heads / params_.key_heads);
    const T* key;
    const T* value;
    int64_t key_step;
    int64_t value_step;
    if (run.key0 < 0) {
      const int64_t row = (batch_ * params_.additional + run.key2) * params_.key_heads + key_head;
      key = static_cast<const T*>(params_.additional_key) + row * params_.head_dim;
      value = static_cast<const T*>(params_.additional_value) + row * params_.value_dim;
      key_step = params_.key_heads * params_.head_dim;
      value_step = params_.key_heads * params_.value_dim;
    } else {
      const bool packed = params_.packed != 0;
      int64_t key_at = plan_.key.offset + batch_ * plan_.key.batch + key_head * plan_.key.head;
      int64_t value_at = plan_.value.offset + batch_ * plan_.value.batch + key_head * plan_.value.head;
      const int64_t element[kAxes] = {run.key0, run.key1, run.key2};
      for (int a = 0; a < kAxes; ++a) {
        const int64_t position = element[a] * plan_.axis[a].dilation + group_[a];
        key_at += position * plan_.key.axis[a];
        value_at += position * plan_.value.axis[a];
      }
      key = static_cast<const T*>(packed ? params_.query : params_.key) + key_at;
      value = static_cast<const T*>(packed ? params_.query : params_.value) + value_at;
      key_step = plan_.axis[2].dilation * plan_.key.axis[2];
      value_step = plan_.axis[2].dilation * plan_.value.axis[2];
    }
    for (int64_t i = 0; i < run.count; ++i) {
      load_row(d_, key + i * key_step, params_.head_dim, scratch_.key + (run.at + i) * params_.head_dim);
      float* row = scratch_.value + (run.at + i) * plan_.padded_dim;
      load_row(d_, value + i * value_step, params_.value_dim, row);
      for (int64_t c = params_.value_dim; c < plan_.padded_dim; ++c) row[c] = 0.0F;
    }
  }

  // Scores of a run: products, bias, mask.
  void score(const Run& run) {
    int64_t i = 0;
    for (; i + 8 <= run.count; i += 8) multiply<8>(run.at + i);
    if (run.count - i >= 4) multiply<4>(run.at + i), i += 4;
    for (; i < run.count; ++i) multiply<1>(run.at + i);

    float* row = scratch_.score + run.at * lane_count_;
    if (run.key0 < 0) {
      for (i = 0; i < run.count; ++i) block_maximum_ = hn::Max(block_maximum_, hn::Load(d_, row + i * lane_count_));
      return;
    }
    const int64_t offset[kAxes] = {run.key0 - first_[0], run.key1 - first_[1], run.key2 - first_[2]};
    const auto in_row = hn::And(sees(0, offset[0]), sees(1, offset[1]));
    const int64_t width1 = 2 * plan_.axis[1].kernel_size - 1;
    const int64_t width2 = 2 * plan_.axis[2].kernel_size - 1;
    const int64_t place = (offset[0] * width1 + offset[1]) * width2 + offset[2];
    const Int bias_at = hn::Load(di_, lanes_.bias);
    for (i = 0; i < run.count; ++i, row += lane_count_) {
      const auto visible = hn::And(in_row, sees(2, offset[2] + i));
      Float scores = hn::Load(d_, row);
      if (bias_ != nullptr) {
        const Int at = hn::Add(bias_at, hn::Set(di_, static_cast<int32_t>(place + i)));
        scores = hn::Add(scores, hn::GatherIndex(d_, bias_, hn::IfThenElseZero(visible, at)));
      }
      scores = hn::IfThenElse(hn::RebindMask(d_, visible), scores, hn::Set(d_, kMasked));
      block_maximum_ = hn::Max(block_maximum_, scores);
      hn::Store(scores, d_, row);
    }
  }

  HWY_INLINE hn::Mask<IntTag> sees(int axis, int64_t offset) const {
    const Int key = hn::Set(di_, static_cast<int32_t>(offset));
    return hn::AndNot(hn::Gt(hn::Load(di_, lanes_.start[axis]), key), hn::Lt(key, hn::Load(di_, lanes_.end[axis])));
  }

  // Products of the tile's queries with the keys [at, at + kCount) of the block.
  template <int kCount>
  HWY_INLINE void multiply(int64_t at) {
    const int64_t dim = params_.head_dim;
    const float* HWY_RESTRICT key = scratch_.key + at * dim;
    const float* HWY_RESTRICT query = scratch_.query;
    Float products[kCount];
    for (int i = 0; i < kCount; ++i) products[i] = hn::Zero(d_);
    for (int64_t c = 0; c < dim; ++c) {
      const Float channel = hn::Load(d_, query + c * lane_count_);
      for (int i = 0; i < kCount; ++i) products[i] = hn::MulAdd(channel, hn::Set(d_, key[i * dim + c]), products[i]);
    }
    for (int i = 0; i < kCount; ++i) hn::Store(products[i], d_, scratch_.score + (at + i) * lane_count_);
  }

  void finish_block() {
    const Float maximum = hn::Max(maximum_, block_maximum_);
    const Float keep = exp_of_negative(d_, hn::Sub(maximum_, maximum));
    maximum_ = maximum;
    Float sum = hn::Zero(d_);
    for (int64_t i = 0; i < filled_; ++i) {
      float* row = scratch_.score + i * lane_count_;
      const Float scores = hn::Load(d_, row);
      const auto masked = hn::Le(scores, hn::Set(d_, kMaskedBound));
      const Float weights = hn::IfThenZeroElse(masked, exp_of_negative(d_, hn::Sub(scores, maximum)));
      hn::Store(weights, d_, row);
      sum = hn::Add(sum, weights);
    }
    sum_ = hn::MulAdd(sum_, keep, sum);
    HWY_ALIGN float kept[kMaxLanes];
    hn::Store(keep, d_, kept);
    for (int64_t quad = 0; quad * kQuad < used_; ++quad) {
      int64_t c = 0;
#if HWY_TARGET <= HWY_AVX3 || HWY_ARCH_ARM_A64
      for (; c + 4 * lane_count_ <= plan_.padded_dim; c += 4 * lane_count_) accumulate<4>(quad, c, kept);
#endif
      for (; c + 2 * lane_count_ <= plan_.padded_dim; c += 2 * lane_count_) accumulate<2>(quad, c, kept);
      for (; c < plan_.padded_dim; c += lane_count_) accumulate<1>(quad, c, kept);
    }
    first_block_ = false;
  }

  // Adds the block's weighted values to the channels [c, c + kVectors vectors) of four lanes' outputs.
  template <int kVectors>
  HWY_INLINE void accumulate(int64_t quad, int64_t c, const float* kept) {
    const int64_t dim = plan_.padded_dim;
    float* output = scratch_.output + quad * kQuad * dim + c;
    Float sums[kQuad][kVectors];
    for (int q = 0; q < kQuad; ++q) {
      for (int v = 0; v < kVectors; ++v) {
        sums[q][v] = first_block_ ? hn::Zero(d_)
                                  : hn::Mul(hn::Set(d_, kept[quad * kQuad + q]),
                                            hn::Load(d_, output + q * dim + v * lane_count_));
      }
    }
    const int64_t* start = lanes_.quad_start[quad];
    const int64_t* end = lanes_.quad_end[quad];
    for (const Run* run = run_list(); run != run_list() + runs_; ++run) {
      int64_t from = 0;
      int64_t to = run->count;
      if (run->key0 >= 0) {
        if (run->key0 < start[0] || run->key0 >= end[0] || run->key1 < start[1] || run->key1 >= end[1]) continue;
        from = std::max<int64_t>(start[2] - run->key2, 0);
        to = std::min(end[2] - run->key2, run->count);
      }
      const float* HWY_RESTRICT value = scratch_.value + (run->at + from) * dim + c;
      const float* HWY_RESTRICT weight = scratch_.score + (run->at + from) * lane_count_ + quad * kQuad;
      for (int64_t i = from; i < to; ++i, value += dim, weight += lane_count_) {
        Float row[kVectors];
        for (int v = 0; v < kVectors; ++v) row[v] = hn::Load(d_, value + v * lane_count_);
        for (int q = 0; q < kQuad; ++q) {
          const Float w = hn::Set(d_, weight[q]);
          for (int v = 0; v < kVectors; ++v) sums[q][v] = hn::MulAdd(w, row[v], sums[q][v]);
        }
      }
    }
    for (int q = 0; q < kQuad; ++q) {
      for (int v = 0; v < kVectors; ++v) hn::Store(sums[q][v], d_, output + q * dim + v * lane_count_);
    }
  }

  void store_outputs() {
    HWY_ALIGN float sum[kMaxLanes];
    HWY_ALIGN float maximum[kMaxLanes];
    hn::Store(sum_, d_, sum);
    hn::Store(maximum_, d_, maximum);
    for (int64_t lane = 0; lane < used_; ++lane) {
      float* row = scratch_.output + lane * plan_.padded_dim;
      const Float factor = hn::Set(d_, 1.0F / sum[lane]);
      for (int64_t c = 0; c < plan_.padded_dim; c += lane_count_) {
        hn::Store(hn::Mul(factor, hn::Load(d_, row + c)), d_, row + c);
      }
      store_row(d_, row, params_.value_dim, static_cast<T*>(params_.output) + lanes_.output_at[lane]);
      if (params_.lse != nullptr) {
        params_.lse[lanes_.output_at[lane] / params_.value_dim] = maximum[lane] + std::log(sum[lane]);
      }
    }
  }

  const FloatTag d_;
  const IntTag di_;
  const na_params& params_;
  const Plan& plan_;
  const Scratch scratch_;
  const int64_t lane_count_;

  int64_t batch_ = 0;
  int64_t head_ = 0;
  int64_t group_[kAxes] = {};
  int64_t first_[kAxes] = {};  // the keys that the tile reads, in elements of the dilation group
  int64_t last_[kAxes] = {};
  Lanes lanes_;
  int64_t used_ = 0;  // lanes that hold a query

  const float* bias_ = nullptr;
  int64_t bias_head_ = -1;

  int64_t runs_ = 0;
  int64_t filled_ = 0;
  bool first_block_ = true;
  Float block_maximum_ = hn::Zero(d_);
  Float maximum_ = hn::Zero(d_);
  Float sum_ = hn::Zero(d_);
};

template <typename T>
void run_typed(const na_params& params, const Plan& plan, int64_t first, int64_t last, const Scratch& scratch) {
  TileKernel<T> kernel(params, plan, scratch);
  for (int64_t task = first; task < last; ++task) kernel.run(task);
}

void run_tasks(const na_params& params, const Plan& plan, int64_t first, int64_t last, const Scratch& scratch) {
  switch (params.dtype) {
    case NA_FLOAT16:
      return run_typed<hwy::float16_t>(params, plan, first, last, scratch);
    case NA_BFLOAT16:
      return run_typed<hwy::bfloat16_t>(params, plan, first, last, scratch);
    default:
      return run_typed<float>(params, plan, first, last, scratch);
  }
}

int64_t lane_count() { return static_cast<int64_t>(hn::Lanes(FloatTag())); }

const char* target_name() { return hwy::TargetName(HWY_TARGET); }

}  // namespace HWY_NAMESPACE
}  // namespace na_deploy
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace na_deploy {

HWY_EXPORT(run_tasks);
HWY_EXPORT(lane_count);
HWY_EXPORT(target_name);

namespace {
Plan plan_of(const na_params& params) { return make_plan(params, HWY_DYNAMIC_DISPATCH(lane_count)()); }
}  // namespace

}  // namespace na_deploy

extern "C" {

int64_t na_cpu_tasks(const na_params* params) { return na_deploy::plan_of(*params).tasks; }

size_t na_cpu_workspace_bytes(const na_params* params) {
  return na_deploy::lay_out(na_deploy::plan_of(*params), *params, nullptr).bytes;
}

void na_cpu_run(const na_params* params, int64_t first, int64_t last, void* scratch) {
  const na_deploy::Plan plan = na_deploy::plan_of(*params);
  using namespace na_deploy;  // the dispatch table's name is not qualified
  HWY_DYNAMIC_DISPATCH(run_tasks)(*params, plan, first, last, lay_out(plan, *params, scratch));
}

const char* na_cpu_target(void) {
  using namespace na_deploy;
  return HWY_DYNAMIC_DISPATCH(target_name)();
}

void na_cpu_window_bounds(int64_t length, int64_t kernel_size, int64_t dilation, int64_t stride, int32_t is_causal,
                          int64_t* start, int64_t* end) {
  for (int64_t i = 0; i < length; ++i) {
    const int64_t size = na_deploy::group_length(length, dilation, i % dilation);
    const na_deploy::Window window =
        na_deploy::group_window(i / dilation, size, kernel_size, stride, is_causal != 0);
    start[i] = window.start;
    end[i] = window.end;
  }
}

}  // extern "C"
#endif  // HWY_ONCE
