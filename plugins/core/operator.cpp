#include "operator.h"

#include <algorithm>
#include <utility>

namespace na_deploy {
namespace {

constexpr size_t kAxes = 3;

std::string to_text(const int64_t* sizes, int count) {
  std::string text = "(";
  for (int i = 0; i < std::min(count, kMostSizes); ++i) {
    text += (i > 0 ? ", " : "") + (sizes[i] < 0 ? std::string("?") : std::to_string(sizes[i]));
  }
  return text + (count > kMostSizes ? ", ...)" : ")");
}

std::string to_text(const Input& input) { return to_text(input.size, input.rank); }

// Writes one value for each axis. Returns an empty string, or a sentence about what is wrong.
std::string set_axes(const char* name, const std::vector<int64_t>& values, int64_t otherwise, int rank,
                     int64_t (&to)[kAxes]) {
  if (values.size() > 1 && values.size() != static_cast<size_t>(rank)) {
    return std::string(name) + " has " + std::to_string(values.size()) + " values " +
           to_text(values.data(), static_cast<int>(values.size())) + " and kernel_size has " + std::to_string(rank) +
           "; give one for all spatial axes or one per axis";
  }
  for (size_t axis = 0; axis < static_cast<size_t>(rank); ++axis) {
    to[axis] = values.empty() ? otherwise : values[values.size() == 1 ? 0 : axis];
  }
  return "";
}

// Returns an empty string, or a sentence about an input whose shape is not the expected one.
std::string misfit(const char* name, const Input& input, const std::vector<int64_t>& expected, const char* why) {
  bool fits = input.rank == static_cast<int>(expected.size());
  for (size_t i = 0; fits && i < expected.size(); ++i) {
    fits = input.size[i] < 0 || expected[i] < 0 || input.size[i] == expected[i];
  }
  if (fits) return "";
  return std::string(name) + " must be " + to_text(expected.data(), static_cast<int>(expected.size())) + why +
         ", got " + to_text(input);
}

std::string wrong_rank(const char* name, int rank, const char* shape, const Input& input) {
  return std::string(name) + " must be (B, " + std::to_string(rank) + " spatial axes, " + shape +
         ") for this kernel_size, got " + (input.is_given() ? to_text(input) : "none");
}

std::string set_packed(const Input (&inputs)[kMostInputs], na_params& params) {
  const Input& qkv = inputs[0];
  const int rank = params.rank;
  if (qkv.rank != rank + 4 || (qkv.size[rank + 1] >= 0 && qkv.size[rank + 1] != 3)) {
    return wrong_rank("qkv", rank, "3, H, D", qkv);
  }
  params.query = qkv.data;
  params.heads = params.key_heads = qkv.size[rank + 2];
  params.head_dim = params.value_dim = qkv.size[rank + 3];
  const Input& padding = inputs[2];
  if (!padding.is_given()) return "";
  params.padding = padding.data;
  return misfit("padding", padding, {3, params.heads, params.head_dim}, " for this qkv");
}

std::string set_additional(const Input& key, const Input& value, na_params& params) {
  if (key.is_given() != value.is_given()) {
    return std::string("additional_key and additional_value come together, got only ") +
           (key.is_given() ? "additional_key" : "additional_value");
  }
  if (!key.is_given()) return "";
  if (key.rank != 4) return "additional_key must be (B, M, Hkv, D), got " + to_text(key);
  params.additional = key.size[1];
  params.additional_key = key.data;
  params.additional_value = value.data;
  const char* why = " to fit query, key and value";
  std::string wrong =
      misfit("additional_key", key, {params.batch, params.additional, params.key_heads, params.head_dim}, why);
  if (!wrong.empty()) return wrong;
  return misfit("additional_value", value, {params.batch, params.additional, params.key_heads, params.value_dim}, why);
}

std::string set_separate(const Input (&inputs)[kMostInputs], na_params& params) {
  const Input& query = inputs[0];
  const auto rank = static_cast<size_t>(params.rank);
  if (query.rank != params.rank + 3) return wrong_rank("query", params.rank, "H, D", query);
  for (const auto& [name, input] : {std::pair{"key", &inputs[1]}, std::pair{"value", &inputs[2]}}) {
    if (input->rank == query.rank) continue;
    return std::string(name) + " must have query's rank " + std::to_string(query.rank) + ", got " +
           (input->is_given() ? to_text(*input) : "none");
  }
  params.query = query.data;
  params.key = inputs[1].data;
  params.value = inputs[2].data;
  params.heads = query.size[rank + 1];
  params.head_dim = query.size[rank + 2];
  params.key_heads = inputs[1].size[rank + 1];
  params.value_dim = inputs[2].size[rank + 2];
  std::vector<int64_t> expected(query.size, query.size + query.rank);
  expected[rank + 1] = params.key_heads;
  std::string wrong = misfit("key", inputs[1], expected, " to fit query");
  if (!wrong.empty()) return wrong;
  expected[rank + 2] = params.value_dim;
  wrong = misfit("value", inputs[2], expected, " to fit query and key");
  return wrong.empty() ? set_additional(inputs[4], inputs[5], params) : wrong;
}

}  // namespace

std::string set_attributes(OperatorKind kind, const AttributeLists& lists, na_params& params) {
  const size_t rank = lists.kernel_size.size();
  if (rank == 0) return "the attribute kernel_size is missing; it needs one value per spatial axis";
  if (rank > kAxes) {
    return "kernel_size must have 1 to 3 values, one per spatial axis, got " + std::to_string(rank);
  }
  params.rank = static_cast<int32_t>(rank);
  params.packed = kind == OperatorKind::kPacked ? 1 : 0;
  params.scale = lists.scale;
  std::string wrong = set_axes("kernel_size", lists.kernel_size, 1, params.rank, params.kernel_size);
  if (wrong.empty()) wrong = set_axes("dilation", lists.dilation, 1, params.rank, params.dilation);
  if (wrong.empty()) wrong = set_axes("stride", lists.stride, 1, params.rank, params.stride);
  if (wrong.empty()) wrong = set_axes("is_causal", lists.is_causal, 0, params.rank, params.is_causal);
  char message[256] = "";
  if (wrong.empty() && na_check_attributes(&params, message, sizeof message) != 0) wrong = message;
  return wrong;
}

std::string set_inputs(const Input (&inputs)[kMostInputs], na_params& params) {
  params.rel_pos_bias = params.additional_key = params.additional_value = params.padding = nullptr;
  params.additional = 0;
  params.batch = inputs[0].size[0];
  std::copy_n(inputs[0].size + 1, params.rank, params.length);
  const OperatorKind kind = kind_of(params);
  std::string wrong = kind == OperatorKind::kPacked ? set_packed(inputs, params) : set_separate(inputs, params);
  const Input& bias = inputs[bias_input(kind)];
  if (!wrong.empty() || !bias.is_given()) return wrong;
  std::vector<int64_t> expected{params.heads};
  for (int axis = 0; axis < params.rank; ++axis) expected.push_back(2 * params.kernel_size[axis] - 1);
  params.rel_pos_bias = bias.data;
  return misfit("rel_pos_bias", bias, expected, " for this kernel_size");
}

std::vector<int64_t> output_shape(const na_params& params, bool with_channels) {
  std::vector<int64_t> shape{params.batch};
  shape.insert(shape.end(), params.length, params.length + params.rank);
  shape.push_back(params.heads);
  if (with_channels) shape.push_back(params.value_dim);
  return shape;
}

bool same_sizes(const na_params& a, const na_params& b) {
  return a.batch == b.batch && std::equal(a.length, a.length + a.rank, b.length) && a.heads == b.heads &&
         a.key_heads == b.key_heads && a.head_dim == b.head_dim && a.value_dim == b.value_dim &&
         a.additional == b.additional;
}

}  // namespace na_deploy
