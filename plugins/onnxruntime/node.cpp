#include "node.h"

#include <algorithm>

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

// Returns whether the node has an attribute of this name, of any type: ONNX Runtime answers a missing attribute and one
// of another type with the same code.
bool is_present(const OrtKernelInfo* info, const char* name) {
  const OrtApi& api = Ort::GetApi();
  const auto succeeds = [](OrtStatus* raw) {
    const Ort::Status status(raw);
    return status.IsOK();
  };
  int64_t integer = 0;
  float number = 0.0F;
  size_t size = 0;
  return succeeds(api.KernelInfoGetAttribute_int64(info, name, &integer)) ||
         succeeds(api.KernelInfoGetAttribute_float(info, name, &number)) ||
         succeeds(api.KernelInfoGetAttributeArray_float(info, name, nullptr, &size)) ||
         succeeds(api.KernelInfoGetAttributeArray_int64(info, name, nullptr, &size)) ||
         succeeds(api.KernelInfoGetAttribute_string(info, name, nullptr, &size));
}

// Returns an INTS attribute, empty where the node does not have it.
std::vector<int64_t> read_ints(const OrtKernelInfo* info, const char* name) {
  const OrtApi& api = Ort::GetApi();
  size_t size = 0;
  const Ort::Status status(api.KernelInfoGetAttributeArray_int64(info, name, nullptr, &size));
  if (!status.IsOK()) {
    if (is_present(info, name)) refuse("the attribute ", name, " must be a list of integers (INTS)");
    return {};
  }
  if (size == 0) refuse("the attribute ", name, " must be a list of integers (INTS), one per spatial axis");
  std::vector<int64_t> values(size);
  Ort::ThrowOnError(api.KernelInfoGetAttributeArray_int64(info, name, values.data(), &size));
  return values;
}

float read_scale(const OrtKernelInfo* info) {
  float scale = 0.0F;
  const Ort::Status status(Ort::GetApi().KernelInfoGetAttribute_float(info, "scale", &scale));
  if (status.IsOK()) return scale;
  if (is_present(info, "scale")) refuse("the attribute scale must be a number (FLOAT)");
  return 0.0F;
}

Input read_input(const OrtKernelContext* context, size_t index) {
  const OrtApi& api = Ort::GetApi();
  size_t count = 0;
  Ort::ThrowOnError(api.KernelContext_GetInputCount(context, &count));
  if (index >= count) return {};
  const OrtValue* value = nullptr;
  Ort::ThrowOnError(api.KernelContext_GetInput(context, index, &value));
  if (value == nullptr) return {};
  const Ort::ConstValue tensor{value};
  const std::vector<int64_t> shape = tensor.GetTensorTypeAndShapeInfo().GetShape();
  Input input;
  input.rank = static_cast<int>(shape.size());
  std::copy_n(shape.begin(), std::min<size_t>(shape.size(), kMostSizes), input.size);
  input.data = tensor.GetTensorRawData();
  return input;
}

void* make_output(OrtKernelContext* context, size_t index, const std::vector<int64_t>& shape) {
  OrtValue* value = nullptr;
  Ort::ThrowOnError(Ort::GetApi().KernelContext_GetOutput(context, index, shape.data(), shape.size(), &value));
  return value == nullptr ? nullptr : Ort::UnownedValue(value).GetTensorMutableRawData();
}

}  // namespace

na_params read_attributes(OperatorKind kind, ONNXTensorElementDataType type, const OrtKernelInfo* info) {
  AttributeLists lists;
  lists.kernel_size = read_ints(info, "kernel_size");
  lists.dilation = read_ints(info, "dilation");
  lists.stride = read_ints(info, "stride");
  lists.is_causal = read_ints(info, "is_causal");
  for (int64_t& is_causal : lists.is_causal) is_causal = is_causal != 0 ? 1 : 0;
  lists.scale = read_scale(info);
  na_params params{};
  params.dtype = dtype_of(type);
  const std::string wrong = set_attributes(kind, lists, params);
  if (!wrong.empty()) refuse(wrong);
  return params;
}

na_params read_call(const Node& node, const OrtKernelContext* context) {
  na_params params = node.params;
  Input inputs[kMostInputs];
  for (int i = 0; i < most_inputs(kind_of(params)); ++i) inputs[i] = read_input(context, static_cast<size_t>(i));
  const std::string wrong = set_inputs(inputs, params);
  if (!wrong.empty()) refuse(wrong);
  char message[256] = "";
  if (na_check(&params, message, sizeof message) != 0) refuse(message);
  return params;
}

void make_outputs(OrtKernelContext* context, na_params& params) {
  params.output = make_output(context, 0, output_shape(params, true));
  size_t count = 0;
  Ort::ThrowOnError(Ort::GetApi().KernelContext_GetOutputCount(context, &count));
  if (count > 1) params.lse = static_cast<float*>(make_output(context, 1, output_shape(params, false)));
}

}  // namespace na_deploy::ort
