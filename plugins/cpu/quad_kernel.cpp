// Attention of four neighbouring queries at a time, for windows of up to a few hundred keys, as NAT and DiNAT use.
//
// A vector holds some channels of four queries; a key's channels are loaded once for all four. Four queries see hardly
// more keys than one, so little is computed in vain: 8x8 keys for 7x7 windows, where a vector of sixteen queries sees
// 10x10. Scores stand as (group of keys, query, key of the group), a group being as many keys as a vector has channels
// of one query. tile_kernel.cpp computes windows too large for one pass and additional keys, group_kernel.cpp groups
// that one window covers.
#include "targets.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "quad_kernel.cpp"
#include <hwy/foreach_target.h>
#include <hwy/highway.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>

#include "bias.h"
#include "exponential-inl.h"
#include "plan.h"
#include "products-inl.h"
#include "rows-inl.h"
#include "single_query.h"
#include "tile.h"
#include "vectors-inl.h"

HWY_BEFORE_NAMESPACE();
namespace na_deploy::cpu {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

constexpr int64_t kGroup = kVector / kQuad;  // channels of one query in a vector, and keys of a group

// Rows of a tile's box of keys or values, in the tensor or copied.
template <typename Number>
struct Rows {
  const Number* first;
  int64_t step[kAxes];

  const Number* at(int64_t k0, int64_t k1, int64_t k2) const {
    return first + k0 * step[0] + k1 * step[1] + k2 * step[2];
  }
};

// kGroup channels of one key, for each query.
HWY_INLINE Float load_channels(FloatTag d, const float* key) {
  if constexpr (kGroup == 4) {
    return hn::LoadDup128(d, key);
  } else if constexpr (kGroup == 2) {
    const hn::Repartition<uint64_t, FloatTag> wide;
    uint64_t pair;
    std::memcpy(&pair, key, sizeof pair);
    return hn::BitCast(d, hn::Set(wide, pair));
  } else {
    return hn::Set(d, *key);
  }
}

#if HWY_NATIVE_DOT_BF16
// The same of twice as many channels in bfloat16.
HWY_INLINE hn::Vec<Pairs::Narrow<FloatTag>> load_channels(FloatTag, const hwy::bfloat16_t* key) {
  const Pairs::Narrow<FloatTag> narrow;
  if constexpr (kGroup == 4) {
    return hn::LoadDup128(narrow, key);
  } else if constexpr (kGroup == 2) {
    uint64_t four;
    std::memcpy(&four, key, sizeof four);
    return hn::BitCast(narrow, hn::Set(hn::Repartition<uint64_t, FloatTag>(), four));
  } else {
    return Pairs::broadcast(FloatTag(), key);
  }
}
#endif

// Sums over channels: from (query, channel) for each key of a group to (query, key).
HWY_INLINE Float sum_channels(FloatTag d, const Float (&products)[kGroup]) {
  if constexpr (kGroup == 4) {
    const hn::RepartitionToWide<FloatTag> wide;
    const Float low =
        hn::Add(hn::InterleaveLower(d, products[0], products[1]), hn::InterleaveUpper(d, products[0], products[1]));
    const Float high =
        hn::Add(hn::InterleaveLower(d, products[2], products[3]), hn::InterleaveUpper(d, products[2], products[3]));
    const auto a = hn::BitCast(wide, low);
    const auto b = hn::BitCast(wide, high);
    return hn::Add(hn::BitCast(d, hn::InterleaveLower(wide, a, b)), hn::BitCast(d, hn::InterleaveUpper(wide, a, b)));
  } else if constexpr (kGroup == 2) {
    return hn::Add(hn::InterleaveEven(d, products[0], products[1]), hn::InterleaveOdd(d, products[0], products[1]));
  } else {
    return products[0];
  }
}

// Combines the kGroup numbers of each query and leaves the result in all their places.
template <class Combine>
HWY_INLINE Float over_group(FloatTag d, Float numbers, const Combine& combine) {
  if constexpr (kGroup >= 2) numbers = combine(numbers, hn::Shuffle2301(numbers));
  if constexpr (kGroup >= 4) numbers = combine(numbers, hn::Shuffle1032(numbers));
  (void)d;
  return numbers;
}

// kGroups groups of keys against four queries, with dots times `scale`. kBlocks: vectors of a query, 0 where `blocks`
// gives them.
template <class N, int kGroups, int64_t kBlocks>
HWY_INLINE void score_groups(FloatTag d, float scale, const typename N::T* HWY_RESTRICT query,
                             const typename N::T* const* keys, int64_t blocks, Float (&scores)[kGroups]) {
  Float products[kGroups][kGroup];
  for (int g = 0; g < kGroups; ++g) {
    for (int64_t i = 0; i < kGroup; ++i) products[g][i] = hn::Zero(d);
  }
  const int64_t count = kBlocks != 0 ? kBlocks : blocks;
  for (int64_t c = 0; c < count; ++c) {
    const auto channels = N::load(d, query + c * kVector * N::kWidth);
    for (int g = 0; g < kGroups; ++g) {
      for (int64_t i = 0; i < kGroup; ++i) {
        const auto number = load_channels(d, keys[g * kGroup + i] + c * kGroup * N::kWidth);
        products[g][i] = N::multiply_add(d, channels, number, products[g][i]);
      }
    }
  }
  for (int g = 0; g < kGroups; ++g) {
    scores[g] = sum_channels(d, products[g]);
    if constexpr (N::kWidth > 1) scores[g] = hn::Mul(scores[g], hn::Set(d, scale));
  }
}

// T: element of the tensors. N: numbers of the products, Singles or, for bfloat16, Pairs.
template <typename T, class N>
class QuadKernel {
  static constexpr bool kDots = N::kWidth > 1;
  static constexpr int64_t kChannels = kGroup * N::kWidth;  // of one query in a vector
  using Number = typename N::T;

 public:
  QuadKernel(const na_params& params, const Plan& plan, const Scratch& scratch)
      : params_(params),
        plan_(plan),
        scratch_(scratch),
        blocks_((kDots ? params.head_dim : plan.padded_head_dim) / kChannels) {}

  void run(int64_t task) {
    if (!place_tile(plan_, params_, task, scratch_.visible, tile_)) return;
    if (plan_.bias_elements != 0 && bias_head_ != tile_.head) load_bias();
    find_rows();
    for (int64_t quad = 0; quad * kQuad < plan_.used_lanes; ++quad) {
      if ((tile_.used >> (quad * kQuad) & 0xFU) == 0) continue;
      load_queries(quad);
      place_keys(quad);
      const Float maximum = score(quad);
      const Float sum = exponentials(maximum);
      HWY_ALIGN float sums[kVector];
      HWY_ALIGN float maxima[kVector];
      hn::Store(sum, d_, sums);
      hn::Store(maximum, d_, maxima);
      add_values();
      store_outputs(quad, sums, maxima);
    }
  }

 private:
  void load_bias() {
    bias_head_ = tile_.head;
    if (params_.prepared_bias != nullptr) {
      spread_ = params_.prepared_bias + tile_.head * plan_.spread.elements;
    } else {
      spread_bias(plan_, params_, tile_.head, scratch_.spread);
      spread_ = scratch_.spread;
    }
  }

  void find_rows() {
    const int64_t key_head = tile_.head / (params_.heads / params_.key_heads);
    const bool packed = params_.packed != 0;
    const auto* key = static_cast<const T*>(packed ? params_.query : params_.key);
    const auto* value = static_cast<const T*>(packed ? params_.query : params_.value);
    const int64_t head_dim = params_.head_dim;
    if constexpr (kDots) {
      keys_ = {begin_of(key, plan_.key, key_head), {}};
      steps_of(plan_.key, keys_.step);
      values_ = pairs_of(value, key_head);
    } else {
      keys_ = rows_of(key, plan_.key, key_head, head_dim, plan_.padded_head_dim, plan_.keys_in_place, scratch_.key);
      values_ = rows_of(value, plan_.value, key_head, params_.value_dim, plan_.padded_value_dim, plan_.values_in_place,
                        scratch_.value);
    }
  }

  const T* begin_of(const T* tensor, const Strides& strides, int64_t head) const {
    const int64_t first[kAxes] = {tile_.axis[0].first, tile_.axis[1].first, tile_.axis[2].first};
    return tensor + offset_of(plan_, strides, tile_, head, first);
  }

  void steps_of(const Strides& strides, int64_t (&step)[kAxes]) const {
    for (int a = 0; a < kAxes; ++a) step[a] = strides.axis[a] * plan_.axis[a].dilation;
  }

  // Calls `use(row)` with the tensor's row of every key of the box, and with that of its neighbour along the last axis,
  // null for the last one.
  template <class Use>
  void for_box(const T* begin, const int64_t (&step)[kAxes], const Use& use) const {
    int64_t count[kAxes];
    for (int a = 0; a < kAxes; ++a) count[a] = tile_.axis[a].last - tile_.axis[a].first;
    for (int64_t k0 = 0; k0 < count[0]; ++k0) {
      for (int64_t k1 = 0; k1 < count[1]; ++k1) {
        const T* row = begin + k0 * step[0] + k1 * step[1];
        for (int64_t k2 = 0; k2 < count[2]; ++k2, row += step[2]) use(row, k2 + 1 < count[2] ? row + step[2] : nullptr);
      }
    }
  }

  // The steps of copied rows, `width` numbers each.
  void steps_of_copies(int64_t width, int64_t (&step)[kAxes]) const {
    step[2] = width;
    step[1] = step[2] * (tile_.axis[2].last - tile_.axis[2].first);
    step[0] = step[1] * (tile_.axis[1].last - tile_.axis[1].first);
  }

  Rows<Number> rows_of(const T* tensor, const Strides& strides, int64_t head, int64_t width, int64_t padded,
                       bool in_place, float* copies) const {
    const T* begin = begin_of(tensor, strides, head);
    Rows<Number> rows{};
    steps_of(strides, rows.step);
    if constexpr (sizeof(T) == sizeof(float)) {
      if (in_place) {
        rows.first = begin;
        return rows;
      }
    }
    if constexpr (!kDots) {
      float* copy = copies;
      for_box(begin, rows.step, [&](const T* row, const T*) {
        load_row(d_, row, width, padded, copy);
        copy += padded;
      });
      rows.first = copies;
      steps_of_copies(padded, rows.step);
    }
    return rows;
  }

  // Each key's values interleaved with those of its neighbour, so that a pair may begin anywhere.
  Rows<Number> pairs_of(const T* value, int64_t head) const {
    Rows<Number> rows{};
    steps_of(plan_.value, rows.step);
    if constexpr (kDots) {
      const int64_t padded = plan_.padded_value_dim;
      auto* pair = reinterpret_cast<Number*>(scratch_.value);
      rows.first = pair;
      for_box(begin_of(value, plan_.value, head), rows.step, [&](const T* row, const T* next) {
        interleave_rows(d_, row, next, params_.value_dim, padded, pair);
        pair += 2 * padded;
      });
      steps_of_copies(2 * padded, rows.step);
    }
    return rows;
  }

  // query[block][query][channel], scaled; with dots as they are.
  void load_queries(int64_t quad) {
    const hn::CappedTag<float, static_cast<size_t>(kGroup)> narrow;
    const auto scale = hn::Set(narrow, plan_.scale);
    const auto* query = static_cast<const T*>(params_.query) + tile_.query_at;
    const uint64_t used = tile_.used >> (quad * kQuad);
    const auto some = static_cast<int64_t>(hwy::Num0BitsBelowLS1Bit_Nonzero64(used));
    for (int64_t i = 0; i < kQuad; ++i) {
      // Lanes without a query compute another's scores, which nobody reads.
      const T* row = query + plan_.lane_query[quad * kQuad + ((used >> i & 1U) != 0 ? i : some)];
      if constexpr (kDots) {
        auto* to = reinterpret_cast<Number*>(scratch_.query) + i * kChannels;
        for (int64_t c = 0; c < blocks_; ++c) {
          std::memcpy(static_cast<void*>(to + c * kVector * N::kWidth), row + c * kChannels, kChannels * sizeof(T));
        }
        continue;
      }
      load_row(d_, row, params_.head_dim, plan_.padded_head_dim, scratch_.output);
      for (int64_t c = 0; c < blocks_; ++c) {
        hn::StoreU(hn::Mul(scale, hn::LoadU(narrow, scratch_.output + c * kGroup)), narrow,
                   scratch_.query + c * kVector + i * kGroup);
      }
    }
  }

  // The box of keys that the four queries see, in groups along the last axis; the last group of a row repeats its last
  // key.
  void place_keys(int64_t quad) {
    for (int a = 0; a < kAxes; ++a) {
      const AxisTile& axis = tile_.axis[a];
      first_[a] = axis.quad_first[quad] - axis.first;
      count_[a] = axis.quad_last[quad] - axis.quad_first[quad];
      origin_[a] = axis.origin + plan_.place[quad * kQuad][a];
    }
    row_groups_ = (count_[2] + kGroup - 1) / kGroup;
    const uint64_t* visible = scratch_.visible[2];
    for (int64_t g = 0; g < row_groups_; ++g) {
      uint32_t bits = 0;
      for (int64_t j = 0; j < std::min(kGroup, count_[2] - g * kGroup); ++j) {
        const uint64_t lanes = tile_.axis[2].sees_all ? ~uint64_t{0} : visible[first_[2] + g * kGroup + j];
        const auto four = static_cast<uint32_t>(lanes >> (quad * kQuad));
        for (int64_t i = 0; i < kQuad; ++i) bits |= (four >> i & 1U) << (i * kGroup + j);
      }
      column_bits_[g] = bits;
    }
    const float** row = scratch_.key_rows;
    KeyRun* run = scratch_.runs;
    for (int64_t k0 = 0; k0 < count_[0]; ++k0) {
      for (int64_t k1 = 0; k1 < count_[1]; ++k1, ++run) {
        const Number* key = keys_.at(first_[0] + k0, first_[1] + k1, first_[2]);
        for (int64_t k2 = 0; k2 < row_groups_ * kGroup; ++k2)
          *row++ = reinterpret_cast<const float*>(key + std::min(k2, count_[2] - 1) * keys_.step[2]);
        run->value = reinterpret_cast<const float*>(values_.at(first_[0] + k0, first_[1] + k1, first_[2]));
      }
    }
  }

  // Scores of the quad's keys with bias and mask; returns each query's maximum.
  Float score(int64_t quad) {
    const int64_t groups = count_[0] * count_[1] * row_groups_;
    const auto* keys = reinterpret_cast<const Number* const*>(scratch_.key_rows);
    const auto* query = reinterpret_cast<const Number*>(scratch_.query);
    int64_t g = 0;
    for (; g + 2 <= groups; g += 2) {
      Float scores[2];
      if (blocks_ * kChannels == 32) {
        score_groups<N, 2, 32 / kChannels>(d_, plan_.scale, query, keys + g * kGroup, blocks_, scores);
      } else {
        score_groups<N, 2, 0>(d_, plan_.scale, query, keys + g * kGroup, blocks_, scores);
      }
      hn::Store(scores[0], d_, scratch_.score + g * kVector);
      hn::Store(scores[1], d_, scratch_.score + (g + 1) * kVector);
    }
    if (g < groups) {
      Float scores[1];
      score_groups<N, 1, 0>(d_, plan_.scale, query, keys + g * kGroup, blocks_, scores);
      hn::Store(scores[0], d_, scratch_.score + g * kVector);
    }

    Float maximum = hn::Set(d_, kMasked);
    float* at = scratch_.score;
    for (int64_t k0 = 0; k0 < count_[0]; ++k0) {
      for (int64_t k1 = 0; k1 < count_[1]; ++k1) {
        const uint32_t row = row_bits(quad, k0, k1);
        const float* bias = spread_ == nullptr ? nullptr : spread_at(k0, k1);
        for (int64_t i = 0; i < row_groups_; ++i, at += kVector) {
          Float scores = hn::Load(d_, at);
          if (bias != nullptr) scores = hn::Add(scores, hn::Load(d_, bias + i * kGroup * kVector));
          scores = hn::IfThenElse(lanes_of(row & column_bits_[i]), scores, hn::Set(d_, kMasked));
          maximum = hn::Max(maximum, scores);
          hn::Store(scores, d_, at);
        }
      }
    }
    return over_group(d_, maximum, [](Float a, Float b) { return hn::Max(a, b); });
  }

  // Returns the queries that see the keys of a row of the box along the other axes, as bits of (query, key).
  uint32_t row_bits(int64_t quad, int64_t k0, int64_t k1) const {
    constexpr uint32_t kAll = (1U << kGroup) - 1;
    uint64_t lanes = ~uint64_t{0};
    if (!tile_.axis[0].sees_all) lanes &= scratch_.visible[0][first_[0] + k0];
    if (!tile_.axis[1].sees_all) lanes &= scratch_.visible[1][first_[1] + k1];
    const auto four = static_cast<uint32_t>(lanes >> (quad * kQuad));
    uint32_t bits = 0;
    for (int64_t i = 0; i < kQuad; ++i) bits |= (four >> i & 1U) * (kAll << (i * kGroup));
    return bits;
  }

  const float* spread_at(int64_t k0, int64_t k1) const {
    const int64_t key[kAxes] = {k0, k1, 0};
    int64_t row = 0;
    for (int a = 0; a < kAxes; ++a) {
      const int64_t element = tile_.axis[a].first + first_[a] + key[a];
      row = row * plan_.spread.width[a] + element - origin_[a] + plan_.axis[a].kernel_size - 1;
    }
    return spread_ + row * kVector;
  }

  // Turns scores into exponentials, in bfloat16 with dots, and returns each query's sum.
  Float exponentials(Float maximum) const {
    const int64_t groups = count_[0] * count_[1] * row_groups_;
    Float sum = hn::Zero(d_);
    for (int64_t g = 0; g < groups; ++g) {
      float* at = scratch_.score + g * kVector;
      const Float weights = exp2_of_negative(d_, hn::Sub(hn::Load(d_, at), maximum));
      if constexpr (kDots) {
        const hn::Rebind<uint16_t, FloatTag> half;
        const hn::Rebind<hwy::bfloat16_t, FloatTag> narrow;
        hn::StoreU(hn::BitCast(narrow, hn::TruncateTo(half, rounded_halves(d_, weights))), narrow,
                   reinterpret_cast<Number*>(scratch_.score) + g * kVector);
      } else {
        hn::Store(weights, d_, at);
      }
      sum = hn::Add(sum, weights);
    }
    return over_group(d_, sum, [](Float a, Float b) { return hn::Add(a, b); });
  }

  void add_values() {
    const int64_t dim = plan_.padded_value_dim;
    int64_t c = 0;
    for (; c + 2 * kVector <= dim; c += 2 * kVector) add_channels<2>(c);
    for (; c < dim; c += kVector) add_channels<1>(c);
  }

  // Computes the second product for kVectors vectors of channels. Every other key has sums of its own, because each
  // multiply-add waits for the one before.
  template <int kVectors>
  HWY_INLINE void add_channels(int64_t channel) {
    constexpr int kChains = kVector >= 16 ? 2 : 1;
    Float sums[kChains][kQuad][kVectors];
    for (int chain = 0; chain < kChains; ++chain) {
      for (int q = 0; q < kQuad; ++q) {
        for (int v = 0; v < kVectors; ++v) sums[chain][q][v] = hn::Zero(d_);
      }
    }
    const auto* weight = reinterpret_cast<const Number*>(scratch_.score);
    constexpr int64_t kWidth = N::kWidth;
    const int64_t step = values_.step[2] * kWidth;
    const int64_t whole = count_[2] / kGroup;
    const int64_t rest = (count_[2] - whole * kGroup + kWidth - 1) / kWidth;  // a key past the row's end has no weight
    for (const KeyRun* run = scratch_.runs; run != scratch_.runs + count_[0] * count_[1]; ++run) {
      const auto* value = reinterpret_cast<const Number*>(run->value) + channel * kWidth;
      for (int64_t g = 0; g < whole; ++g, weight += kVector) {
        for (int64_t j = 0; j < kGroup / kWidth; ++j, value += step) {
          add_value<N, kVectors>(d_, value, weight + j * kWidth, sums[j % kChains], kGroup);
        }
      }
      if (rest > 0) {
        for (int64_t j = 0; j < rest; ++j, value += step) {
          add_value<N, kVectors>(d_, value, weight + j * kWidth, sums[0], kGroup);
        }
        weight += kVector;
      }
    }
    for (int q = 0; q < kQuad; ++q) {
      for (int v = 0; v < kVectors; ++v) {
        Float sum = sums[0][q][v];
        if constexpr (kChains == 2) sum = hn::Add(sum, sums[1][q][v]);
        hn::Store(sum, d_, scratch_.output + q * plan_.padded_value_dim + channel + v * kVector);
      }
    }
  }

  void store_outputs(int64_t quad, const float* sums, const float* maxima) const {
    for (int64_t i = 0; i < kQuad; ++i) {
      const int64_t lane = quad * kQuad + i;
      if ((tile_.used >> lane & 1U) == 0) continue;
      const float* output = scratch_.output + i * plan_.padded_value_dim;
      if (!(maxima[i * kGroup] > kMasked) || !are_numbers(d_, output, plan_.padded_value_dim)) {
        attend_singly(params_, plan_, tile_, lane);
        continue;
      }
      const int64_t at = tile_.output_at + plan_.lane_output[lane];
      const float sum = sums[i * kGroup];
      store_row(d_, hn::Set(d_, 1.0F / sum), output, params_.value_dim, static_cast<T*>(params_.output) + at);
      if (params_.lse != nullptr) {
        params_.lse[at / params_.value_dim] = (maxima[i * kGroup] + std::log2(sum)) * kLn2;
      }
    }
  }

  const FloatTag d_;
  const na_params& params_;
  const Plan& plan_;
  const Scratch scratch_;
  const int64_t blocks_;  // vectors that four queries take
  Tile tile_;

  int64_t bias_head_ = -1;
  const float* spread_ = nullptr;

  Rows<Number> keys_{};
  Rows<Number> values_{};
  int64_t first_[kAxes] = {};  // the quad's box of keys, counted from the tile's
  int64_t count_[kAxes] = {};
  int64_t origin_[kAxes] = {};  // element of the quad's first query
  int64_t row_groups_ = 0;
  uint32_t column_bits_[kMaxQuadRow] = {};
};

template <typename T, class N>
void run_quad_tasks(const na_params& params, const Plan& plan, int64_t first, int64_t last, const Scratch& scratch) {
  QuadKernel<T, N> kernel(params, plan, scratch);
  for (int64_t task = first; task < last; ++task) kernel.run(task);
}

void run_quads(const na_params& params, const Plan& plan, int64_t first, int64_t last, const Scratch& scratch) {
  switch (params.dtype) {
    case NA_FLOAT16:
      return run_quad_tasks<hwy::float16_t, Singles>(params, plan, first, last, scratch);
    case NA_BFLOAT16:
      if (plan.dots) return run_quad_tasks<hwy::bfloat16_t, Pairs>(params, plan, first, last, scratch);
      return run_quad_tasks<hwy::bfloat16_t, Singles>(params, plan, first, last, scratch);
    default:
      return run_quad_tasks<float, Singles>(params, plan, first, last, scratch);
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace na_deploy::cpu
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace na_deploy::cpu {

HWY_EXPORT(run_quads);

void run_in_quads(const na_params& params, const Plan& plan, int64_t first, int64_t last, const Scratch& scratch) {
  HWY_DYNAMIC_DISPATCH(run_quads)(params, plan, first, last, scratch);
}

}  // namespace na_deploy::cpu
#endif  // HWY_ONCE
