// Shape inference through the C interface: the C++ wrapper (1.21) writes symbolic sizes as -2, which ONNX Runtime
// refuses.
#include "shape_inference.h"

#include <memory>

namespace na_deploy::ort {
namespace {

// Sizes of one tensor: a number, or -1 and a name, which may be empty.
struct Shape {
  std::vector<int64_t> sizes;
  std::vector<std::string> names;

  size_t rank() const { return sizes.size(); }
  void append(const Shape& other, size_t axis) {
    sizes.push_back(other.sizes[axis]);
    names.push_back(other.names[axis]);
  }
};

struct ReleaseInfo {
  void operator()(OrtTensorTypeAndShapeInfo* info) const { Ort::GetApi().ReleaseTensorTypeAndShapeInfo(info); }
};

// Reads the shape and type of an input. ONNX Runtime owns the info, whose rank is 0 where the shape is unknown.
Shape input_shape(const OrtShapeInferContext* context, size_t index, ONNXTensorElementDataType& type) {
  const OrtApi& api = Ort::GetApi();
  OrtTensorTypeAndShapeInfo* info = nullptr;
  Ort::ThrowOnError(api.ShapeInferContext_GetInputTypeShape(context, index, &info));
  Ort::ThrowOnError(api.GetTensorElementType(info, &type));
  size_t rank = 0;
  Ort::ThrowOnError(api.GetDimensionsCount(info, &rank));
  Shape shape;
  shape.sizes.resize(rank);
  std::vector<const char*> names(rank, nullptr);
  if (rank > 0) {
    Ort::ThrowOnError(api.GetDimensions(info, shape.sizes.data(), rank));
    Ort::ThrowOnError(api.GetSymbolicDimensions(info, names.data(), rank));
  }
  for (size_t axis = 0; axis < rank; ++axis) {
    shape.names.emplace_back(names[axis] != nullptr ? names[axis] : "");
    if (!shape.names[axis].empty() || shape.sizes[axis] < 0) shape.sizes[axis] = -1;
  }
  return shape;
}

void set_output(OrtShapeInferContext* context, size_t index, const Shape& shape, ONNXTensorElementDataType type) {
  const OrtApi& api = Ort::GetApi();
  OrtTensorTypeAndShapeInfo* created = nullptr;
  Ort::ThrowOnError(api.CreateTensorTypeAndShapeInfo(&created));
  const std::unique_ptr<OrtTensorTypeAndShapeInfo, ReleaseInfo> info(created);
  std::vector<const char*> names;
  for (const std::string& name : shape.names) names.push_back(name.c_str());
  Ort::ThrowOnError(api.SetTensorElementType(info.get(), type));
  Ort::ThrowOnError(api.SetDimensions(info.get(), shape.sizes.data(), shape.rank()));
  Ort::ThrowOnError(api.SetSymbolicDimensions(info.get(), names.data(), names.size()));
  Ort::ThrowOnError(api.ShapeInferContext_SetOutputTypeShape(context, index, info.get()));
}

}  // namespace

OrtStatusPtr infer_shapes(OperatorKind kind, OrtShapeInferContext* context) noexcept {
  try {
    ONNXTensorElementDataType type = ONNX_TENSOR_ELEMENT_DATA_TYPE_UNDEFINED;
    const Shape first = input_shape(context, 0, type);
    const size_t before_heads = kind == OperatorKind::kPacked ? 3 : 2;  // (…, 3, H, D) or (…, H, D)
    if (first.rank() < before_heads + 2) return nullptr;
    Shape output;  // (B, *X, H, Dv)
    for (size_t axis = 0; axis + before_heads < first.rank(); ++axis) output.append(first, axis);
    output.append(first, first.rank() - 2);
    if (kind == OperatorKind::kPacked) {
      output.append(first, first.rank() - 1);
    } else {
      const Shape value = input_shape(context, 2, type);
      if (value.rank() != first.rank()) return nullptr;
      output.append(value, value.rank() - 1);
    }
    // Nothing tells whether the node has lse, and ONNX Runtime, at least up to 1.24, ends the process when the shape of
    // an absent output is set. The shape of lse is therefore left to the file's own statements and to run time.
    set_output(context, 0, output, type);
  } catch (const std::exception&) {
  }
  return nullptr;
}

}  // namespace na_deploy::ort
