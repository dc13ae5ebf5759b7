// The two operators of the domain.
#pragma once

namespace na_deploy::ort {

enum class Form {
  kSeparate,  // NeighborhoodAttention(query, key, value, rel_pos_bias?, additional_key?, additional_value?)
  kPacked,    // NeighborhoodAttentionQKV(qkv, rel_pos_bias?, padding?)
};

inline const char* name_of(Form form) {
  return form == Form::kPacked ? "NeighborhoodAttentionQKV" : "NeighborhoodAttention";
}

}  // namespace na_deploy::ort
