// Queries from the tensor into lanes, and the lanes' outputs back. Per target: included once for each instruction set.
#if defined(NA_DEPLOY_CPU_LANES_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef NA_DEPLOY_CPU_LANES_INL_H_
#undef NA_DEPLOY_CPU_LANES_INL_H_
#else
#define NA_DEPLOY_CPU_LANES_INL_H_
#endif

#include <cmath>
#include <cstdint>
#include <cstring>

#include <hwy/highway.h>

#include "plan.h"
#include "rows-inl.h"
#include "single_query.h"
#include "tile.h"
#include "vectors-inl.h"

HWY_BEFORE_NAMESPACE();
namespace na_deploy::cpu {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

// Floats that hold a row of head_dim numbers of N, filled up to whole vectors.
template <class N>
HWY_INLINE int64_t columns_of(int64_t head_dim) {
  return (head_dim / N::kWidth + kVector - 1) / kVector * kVector;
}

// A query's channels, or pairs of them, filled up with zeros to whole vectors: in the tensor or copied.
template <class N, typename T>
HWY_INLINE const float* query_row(FloatTag d, const T* row, int64_t head_dim, float* copy) {
  const int64_t columns = columns_of<N>(head_dim);
  if constexpr (N::kWidth > 1) {
    if (columns * N::kWidth == head_dim) return reinterpret_cast<const float*>(row);
    const auto bytes = static_cast<size_t>(head_dim) * sizeof(T);
    std::memcpy(copy, row, bytes);
    std::memset(reinterpret_cast<char*>(copy) + bytes, 0, static_cast<size_t>(columns) * sizeof(float) - bytes);
  } else {
    if constexpr (sizeof(T) == sizeof(float)) {
      if (columns == head_dim) return row;
    }
    load_row(d, row, head_dim, columns, copy);
  }
  return copy;
}

// A vector of a query's row: scaled, or pairs, which move like numbers without arithmetic.
template <class N>
HWY_INLINE Float load_query(FloatTag d, Float scale, const float* at) {
  return N::kWidth > 1 ? hn::LoadU(d, at) : hn::Mul(scale, hn::LoadU(d, at));
}

// Writes the queries of the tile's first `lanes` lanes as (columns, lanes). `copies` has room for four rows.
template <class N, typename T>
HWY_INLINE void load_queries(FloatTag d, const na_params& params, const Plan& plan, const Tile& tile, int64_t lanes,
                             float* copies, float* to) {
  const auto* query = static_cast<const T*>(params.query) + tile.query_at;
  const auto some = static_cast<int64_t>(hwy::Num0BitsBelowLS1Bit_Nonzero64(tile.used));
  const Float scale = hn::Set(d, plan.scale);
  for (int64_t lane = 0; lane < lanes; lane += kQuad) {
    const float* rows[kQuad];
    for (int64_t i = 0; i < kQuad; ++i) {
      // Lanes without a query compute another's scores, which nobody reads.
      const T* row = query + plan.lane_query[(tile.used >> (lane + i) & 1U) != 0 ? lane + i : some];
      rows[i] = query_row<N>(d, row, params.head_dim, copies + i * plan.padded_head_dim);
    }
    transpose_rows(
        d, [d, scale](const float* at) { return load_query<N>(d, scale, at); }, rows, columns_of<N>(params.head_dim),
        to + lane, lanes);
  }
}

// Divides the outputs (lanes, padded_value_dim) by the sums of their weights and writes them, and lse.
template <typename T>
HWY_INLINE void store_outputs(FloatTag d, const na_params& params, const Plan& plan, const Tile& tile,
                              const float* maximum, const float* sum, const float* output) {
  for (int64_t lane = 0; lane < plan.used_lanes; ++lane, output += plan.padded_value_dim) {
    if ((tile.used >> lane & 1U) == 0) continue;
    if (!(maximum[lane] > kMasked) || !are_numbers(d, output, plan.padded_value_dim)) {
      attend_singly(params, plan, tile, lane);
      continue;
    }
    const int64_t at = tile.output_at + plan.lane_output[lane];
    store_row(d, hn::Set(d, 1.0F / sum[lane]), output, params.value_dim, static_cast<T*>(params.output) + at);
    if (params.lse != nullptr) params.lse[at / params.value_dim] = (maximum[lane] + std::log2(sum[lane])) * kLn2;
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace na_deploy::cpu
HWY_AFTER_NAMESPACE();

#endif
