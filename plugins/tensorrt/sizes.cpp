#include "sizes.h"

#include <cstdint>
#include <vector>

namespace na_deploy::trt {
namespace {

using nvinfer1::DataType;
using nvinfer1::Dims;

constexpr char kSomeTensor = 0;

na_dtype dtype_of(DataType type) {
  return type == DataType::kHALF ? NA_FLOAT16 : type == DataType::kBF16 ? NA_BFLOAT16 : NA_FLOAT32;
}

// "(2, 56, ?, 3, 2, 32)"
std::string to_text(const int64_t* sizes, size_t count) {
  std::string text = "(";
  for (size_t i = 0; i < count; ++i) {
    text += (i > 0 ? ", " : "") + (sizes[i] < 0 ? std::string("?") : std::to_string(sizes[i]));
  }
  return text + ")";
}

// Empty, or what is wrong with an input's dimensions; a size that is not known fits any.
std::string misfit(const char* name, const Dims& found, const std::vector<int64_t>& expected, const char* why) {
  bool fits = found.nbDims == static_cast<int32_t>(expected.size());
  for (size_t i = 0; fits && i < expected.size(); ++i) {
    fits = found.d[i] < 0 || expected[i] < 0 || found.d[i] == expected[i];
  }
  if (fits) return "";
  return std::string(name) + " must be " + to_text(expected.data(), expected.size()) + why + ", got " +
         to_text(found.d, static_cast<size_t>(found.nbDims));
}

std::string read_separate(const Dims* const* dims, int32_t inputs, na_params& params) {
  const auto rank = static_cast<size_t>(params.rank);
  std::vector<int64_t> expected(dims[0]->d, dims[0]->d + dims[0]->nbDims);
  expected[rank + 1] = params.key_heads = dims[1]->nbDims == params.rank + 3 ? dims[1]->d[rank + 1] : -1;
  std::string wrong = misfit("key", *dims[1], expected, " to fit query");
  if (!wrong.empty()) return wrong;
  expected[rank + 2] = params.value_dim = dims[2]->nbDims == params.rank + 3 ? dims[2]->d[rank + 2] : -1;
  wrong = misfit("value", *dims[2], expected, " to fit query and key");
  if (!wrong.empty() || inputs < kMostInputs) return wrong;
  params.additional = dims[4]->nbDims == 4 ? dims[4]->d[1] : -1;
  const char* why = " to fit query, key and value";
  wrong = misfit("additional_key", *dims[4], {params.batch, params.additional, params.key_heads, params.head_dim}, why);
  if (!wrong.empty()) return wrong;
  return misfit("additional_value", *dims[5], {params.batch, params.additional, params.key_heads, params.value_dim},
                why);
}

std::string read_packed(const Dims* const* dims, int32_t inputs, na_params& params) {
  params.key_heads = params.heads;
  params.value_dim = params.head_dim;
  if (dims[0]->d[params.rank + 1] != 3) return "qkv must be (B, spatial axes, 3, H, D)";
  if (inputs < 3) return "";
  params.padding = &kSomeTensor;
  return misfit("padding", *dims[2], {3, params.heads, params.head_dim}, " as qkv has them");
}

}  // namespace

bool takes_inputs(Form form, int32_t inputs) {
  return form == Form::kPacked ? inputs >= 1 && inputs <= 3 : inputs == 3 || inputs == 4 || inputs == kMostInputs;
}

int32_t bias_input(Form form, int32_t inputs) {
  const int32_t at = form == Form::kPacked ? 1 : 3;
  return inputs > at ? at : -1;
}

std::string read_sizes(Form form, const Attributes& attributes, const Dims* const* dims, DataType type, int32_t inputs,
                       na_params& params) {
  const int32_t rank = attributes.rank();
  const Dims& first = *dims[0];
  const bool packed = form == Form::kPacked;
  if (!takes_inputs(form, inputs)) return "it takes other numbers of inputs than " + std::to_string(inputs);
  if (first.nbDims != rank + (packed ? 4 : 3)) {
    return "its first input has " + std::to_string(first.nbDims) + " dimensions, and kernel_size is for " +
           std::to_string(rank) + " spatial axes";
  }
  params = {};
  params.rank = rank;
  params.packed = packed ? 1 : 0;
  params.dtype = dtype_of(type);
  params.batch = first.d[0];
  for (int32_t a = 0; a < rank; ++a) {
    params.length[a] = first.d[1 + a];
    params.kernel_size[a] = attributes.kernel_size[static_cast<size_t>(a)];
    params.dilation[a] = attributes.dilation[static_cast<size_t>(a)];
    params.stride[a] = attributes.stride[static_cast<size_t>(a)];
    params.is_causal[a] = attributes.is_causal[static_cast<size_t>(a)];
  }
  params.heads = first.d[first.nbDims - 2];
  params.head_dim = first.d[first.nbDims - 1];
  params.scale = attributes.scale;
  std::string wrong = packed ? read_packed(dims, inputs, params) : read_separate(dims, inputs, params);
  const int32_t bias = bias_input(form, inputs);
  if (!wrong.empty() || bias < 0) return wrong;
  std::vector<int64_t> expected{params.heads};
  for (int32_t a = 0; a < rank; ++a) expected.push_back(2 * params.kernel_size[a] - 1);
  params.rel_pos_bias = &kSomeTensor;
  return misfit("rel_pos_bias", *dims[bias], expected, " for this kernel_size");
}

}  // namespace na_deploy::trt
