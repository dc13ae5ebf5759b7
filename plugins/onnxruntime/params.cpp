#include "params.h"

namespace na_deploy::ort {
namespace {

na_dtype dtype_of(ONNXTensorElementDataType type) {
  switch (type) {
    case ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT16:
      return NA_FLOAT16;
    case ONNX_TENSOR_ELEMENT_DATA_TYPE_BFLOAT16:
      return NA_BFLOAT16;
    default:
      return NA_FLOAT32;
  }
}

void* make_output(OrtKernelContext* context, size_t index, const std::vector<int64_t>& shape) {
  OrtValue* value = nullptr;
  Ort::ThrowOnError(Ort::GetApi().KernelContext_GetOutput(context, index, shape.data(), shape.size(), &value));
  return value == nullptr ? nullptr : Ort::UnownedValue(value).GetTensorMutableRawData();
}

bool has_output(const OrtKernelContext* context, size_t index) {
  size_t count = 0;
  Ort::ThrowOnError(Ort::GetApi().KernelContext_GetOutputCount(context, &count));
  return index < count;
}

}  // namespace

na_params params_of(const Problem& problem, const Node& node) {
  const Attributes& attributes = node.attributes;
  na_params params{};
  params.rank = attributes.rank();
  params.packed = node.form == Form::kPacked;
  params.dtype = dtype_of(node.type);
  params.batch = problem.batch;
  params.heads = problem.heads;
  params.key_heads = problem.key_heads;
  params.head_dim = problem.head_dim;
  params.value_dim = problem.value_dim;
  params.additional = problem.additional;
  for (size_t axis = 0; axis < problem.length.size(); ++axis) {
    params.length[axis] = problem.length[axis];
    params.kernel_size[axis] = attributes.kernel_size[axis];
    params.dilation[axis] = attributes.dilation[axis];
    params.stride[axis] = attributes.stride[axis];
    params.is_causal[axis] = attributes.is_causal[axis] != 0;
  }
  params.scale = attributes.scale;
  params.query = problem.query;
  params.key = problem.key;
  params.value = problem.value;
  params.rel_pos_bias = problem.rel_pos_bias;
  params.additional_key = problem.additional_key;
  params.additional_value = problem.additional_value;
  params.padding = problem.padding;
  return params;
}

void make_outputs(OrtKernelContext* context, const Problem& problem, na_params& params) {
  params.output = make_output(context, 0, problem.output_shape(true));
  if (has_output(context, 1)) {
    params.lse = static_cast<float*>(make_output(context, 1, problem.output_shape(false)));
  }
}

}  // namespace na_deploy::ort
