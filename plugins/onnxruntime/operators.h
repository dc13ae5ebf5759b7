// The operators as ONNX Runtime sees them: name, inputs, outputs, types and kernels. One object for each operator, type
// and provider.
#pragma once

#include <utility>

#include "node.h"
#include "operator_kind.h"
#include "ort_api.h"
#include "shape_inference.h"

namespace na_deploy::ort {

// Makes a Kernel(Node, info), which ONNX Runtime owns from then on.
template <typename Kernel>
OrtStatusPtr create_kernel(OperatorKind kind, ONNXTensorElementDataType type, const OrtKernelInfo* info,
                           void** kernel) noexcept {
  std::string subject = name_of(kind);
  *kernel = nullptr;
  OrtStatusPtr failure = as_status(name_of(kind), [&] {
    const std::string name = Ort::ConstKernelInfo(info).GetNodeName();
    if (!name.empty()) subject += " node '" + name + "'";
  });
  if (failure != nullptr) return failure;
  return as_status(subject.c_str(),
                   [&] { *kernel = new Kernel(Node{read_attributes(kind, type, info), subject}, info); });
}

// An operator of one type in one execution provider, which Kernel computes for. Tensors lie in the provider's own
// memory, which is ONNX Runtime's default.
template <typename Kernel>
class AttentionOperator : public Ort::CustomOpBase<AttentionOperator<Kernel>, Kernel, true> {
 public:
  AttentionOperator(OperatorKind kind, ONNXTensorElementDataType type, const char* provider)
      : kind_(kind), type_(type), provider_(provider) {
    OrtCustomOp::version = kOrtApi;
    OrtCustomOp::InferOutputShapeFn = [](const OrtCustomOp* self, OrtShapeInferContext* context) -> OrtStatusPtr {
      return infer_shapes(static_cast<const AttentionOperator*>(self)->kind_, context);
    };
  }

  const char* GetName() const { return name_of(kind_); }
  const char* GetExecutionProviderType() const { return provider_; }

  size_t GetInputTypeCount() const { return static_cast<size_t>(most_inputs(kind_)); }
  ONNXTensorElementDataType GetInputType(size_t) const { return type_; }
  OrtCustomOpInputOutputCharacteristic GetInputCharacteristic(size_t index) const {
    return index < static_cast<size_t>(required_inputs(kind_)) ? INPUT_OUTPUT_REQUIRED : INPUT_OUTPUT_OPTIONAL;
  }

  size_t GetOutputTypeCount() const { return 2; }
  ONNXTensorElementDataType GetOutputType(size_t index) const {
    return index == 0 ? type_ : ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT;
  }
  OrtCustomOpInputOutputCharacteristic GetOutputCharacteristic(size_t index) const {
    return index == 0 ? INPUT_OUTPUT_REQUIRED : INPUT_OUTPUT_OPTIONAL;
  }

  OrtStatusPtr CreateKernelV2(const OrtApi&, const OrtKernelInfo* info, void** kernel) const noexcept {
    return create_kernel<Kernel>(kind_, type_, info, kernel);
  }

 private:
  OperatorKind kind_;
  ONNXTensorElementDataType type_;
  const char* provider_;
};

// Adds both operators, for every type, to the domain. Operators are never released: sessions refer to them until the
// process ends.
template <typename Kernel>
void add_operators(Ort::CustomOpDomain& domain, const char* provider) {
  for (const auto kind : {OperatorKind::kSeparate, OperatorKind::kPacked}) {
    for (const auto type : {ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT, ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT16,
                            ONNX_TENSOR_ELEMENT_DATA_TYPE_BFLOAT16}) {
      domain.Add(new AttentionOperator<Kernel>(kind, type, provider));
    }
  }
}

// Adds the operators of every provider that the library is compiled for.
void add_all_operators(Ort::CustomOpDomain& domain);

}  // namespace na_deploy::ort
