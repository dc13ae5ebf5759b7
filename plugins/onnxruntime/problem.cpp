#include "problem.h"

namespace na_deploy::ort {
namespace {

struct Input {
  bool present = false;
  const void* data = nullptr;
  std::vector<int64_t> shape;

  explicit operator bool() const { return present; }
};

// Returns an input; an empty one where the node leaves it out.
Input read_input(const OrtKernelContext* context, size_t index) {
  const OrtApi& api = Ort::GetApi();
  size_t count = 0;
  Ort::ThrowOnError(api.KernelContext_GetInputCount(context, &count));
  if (index >= count) return {};
  const OrtValue* value = nullptr;
  Ort::ThrowOnError(api.KernelContext_GetInput(context, index, &value));
  if (value == nullptr) return {};
  const Ort::ConstValue tensor{value};
  return {true, tensor.GetTensorRawData(), tensor.GetTensorTypeAndShapeInfo().GetShape()};
}

void expect(const char* name, const Input& input, const std::vector<int64_t>& expected, const char* why) {
  if (input.shape != expected) refuse(name, " must be ", to_text(expected), why, ", got ", to_text(input.shape));
}

void read_packed(const OrtKernelContext* context, size_t rank, Problem& problem, Input& bias) {
  const Input qkv = read_input(context, 0);
  if (qkv.shape.size() != rank + 4 || qkv.shape[rank + 1] != 3) {
    refuse("qkv must be (B, ", rank, " spatial axes, 3, H, D) for this kernel_size, got ", to_text(qkv.shape));
  }
  problem.query = qkv.data;
  problem.batch = qkv.shape[0];
  problem.length.assign(qkv.shape.begin() + 1, qkv.shape.begin() + 1 + static_cast<int64_t>(rank));
  problem.heads = problem.key_heads = qkv.shape[rank + 2];
  problem.head_dim = problem.value_dim = qkv.shape[rank + 3];
  bias = read_input(context, 1);
  const Input padding = read_input(context, 2);
  if (padding) {
    expect("padding", padding, {3, problem.heads, problem.head_dim}, " for this qkv");
    problem.padding = padding.data;
  }
}

void read_additional(const OrtKernelContext* context, Problem& problem) {
  const Input key = read_input(context, 4);
  const Input value = read_input(context, 5);
  if (static_cast<bool>(key) != static_cast<bool>(value)) {
    refuse("additional_key and additional_value come together, got only ", key ? "additional_key" : "additional_value");
  }
  if (!key) return;
  if (key.shape.size() != 4) refuse("additional_key must be (B, M, Hkv, D), got ", to_text(key.shape));
  problem.additional = key.shape[1];
  const char* why = " to fit query, key and value";
  expect("additional_key", key, {problem.batch, problem.additional, problem.key_heads, problem.head_dim}, why);
  expect("additional_value", value, {problem.batch, problem.additional, problem.key_heads, problem.value_dim}, why);
  problem.additional_key = key.data;
  problem.additional_value = value.data;
}

void read_separate(const OrtKernelContext* context, size_t rank, Problem& problem, Input& bias) {
  const Input query = read_input(context, 0);
  const Input key = read_input(context, 1);
  const Input value = read_input(context, 2);
  if (query.shape.size() != rank + 3) {
    refuse("query must be (B, ", rank, " spatial axes, H, D) for this kernel_size, got ", to_text(query.shape));
  }
  if (key.shape.size() != rank + 3) {
    refuse("key must have query's rank ", rank + 3, ", got ", to_text(key.shape));
  }
  if (value.shape.size() != rank + 3) {
    refuse("value must have query's rank ", rank + 3, ", got ", to_text(value.shape));
  }
  problem.batch = query.shape[0];
  problem.length.assign(query.shape.begin() + 1, query.shape.begin() + 1 + static_cast<int64_t>(rank));
  problem.heads = query.shape[rank + 1];
  problem.head_dim = query.shape[rank + 2];
  problem.key_heads = key.shape[rank + 1];
  problem.value_dim = value.shape[rank + 2];
  std::vector<int64_t> expected = query.shape;
  expected[rank + 1] = problem.key_heads;
  expect("key", key, expected, " to fit query");
  expected[rank + 2] = problem.value_dim;
  expect("value", value, expected, " to fit query and key");
  if (problem.key_heads < 1 || problem.heads % problem.key_heads != 0) {
    refuse("query has ", problem.heads, " heads, which is not a multiple of key's ", problem.key_heads);
  }
  problem.query = query.data;
  problem.key = key.data;
  problem.value = value.data;
  bias = read_input(context, 3);
  read_additional(context, problem);
}

}  // namespace

std::vector<int64_t> Problem::output_shape(bool with_value_dim) const {
  std::vector<int64_t> shape{batch};
  shape.insert(shape.end(), length.begin(), length.end());
  shape.push_back(heads);
  if (with_value_dim) shape.push_back(value_dim);
  return shape;
}

Problem read_problem(Form form, const Attributes& attributes, const OrtKernelContext* context) {
  Problem problem;
  Input bias;
  const auto rank = static_cast<size_t>(attributes.rank());
  if (form == Form::kPacked) {
    read_packed(context, rank, problem, bias);
  } else {
    read_separate(context, rank, problem, bias);
  }
  if (problem.heads < 1 || problem.head_dim < 1 || problem.value_dim < 1) {
    refuse("there must be at least one head of at least one channel, got ", problem.heads, " heads of ",
           problem.head_dim, " channels and values of ", problem.value_dim);
  }
  if (bias) {
    std::vector<int64_t> expected{problem.heads};
    for (const int64_t size : attributes.kernel_size) expected.push_back(2 * size - 1);
    expect("rel_pos_bias", bias, expected, " for this kernel_size");
    problem.rel_pos_bias = bias.data;
  }
  return problem;
}

}  // namespace na_deploy::ort
