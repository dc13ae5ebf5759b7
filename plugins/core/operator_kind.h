// The two operators of the domain na_deploy.
#pragma once

#include "na_params.h"

namespace na_deploy {

enum class OperatorKind {
  kSeparate,  // NeighborhoodAttention(query, key, value, rel_pos_bias?, additional_key?, additional_value?)
  kPacked,    // NeighborhoodAttentionQKV(qkv, rel_pos_bias?, padding?)
};

inline const char* name_of(OperatorKind kind) {
  return kind == OperatorKind::kPacked ? "NeighborhoodAttentionQKV" : "NeighborhoodAttention";
}

inline OperatorKind kind_of(const na_params& params) {
  return params.packed != 0 ? OperatorKind::kPacked : OperatorKind::kSeparate;
}

constexpr int most_inputs(OperatorKind kind) { return kind == OperatorKind::kPacked ? 3 : 6; }
constexpr int required_inputs(OperatorKind kind) { return kind == OperatorKind::kPacked ? 1 : 3; }
constexpr int bias_input(OperatorKind kind) { return kind == OperatorKind::kPacked ? 1 : 3; }

}  // namespace na_deploy
