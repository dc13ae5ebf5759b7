// The operators as ONNX Runtime sees them: name, inputs, outputs, types. One object per operator, type and provider.
#pragma once

#include "api.h"
#include "form.h"
#include "node.h"
#include "shape_inference.h"

namespace na_deploy::ort {

// Kernel: what computes a node for the execution provider of that name. Tensors lie in the provider's own memory, which
// is what ONNX Runtime takes for granted unless told otherwise.
template <typename Kernel>
class AttentionOperator : public Ort::CustomOpBase<AttentionOperator<Kernel>, Kernel, true> {
 public:
  AttentionOperator(Form form, ONNXTensorElementDataType type, const char* provider)
      : form_(form), type_(type), provider_(provider) {
    OrtCustomOp::version = kOrtApi;
    OrtCustomOp::InferOutputShapeFn = [](const OrtCustomOp* self, OrtShapeInferContext* context) -> OrtStatusPtr {
      return infer_shapes(static_cast<const AttentionOperator*>(self)->form_, context);
    };
  }

  const char* GetName() const { return name_of(form_); }
  const char* GetExecutionProviderType() const { return provider_; }

  size_t GetInputTypeCount() const { return form_ == Form::kPacked ? 3 : 6; }
  ONNXTensorElementDataType GetInputType(size_t) const { return type_; }
  OrtCustomOpInputOutputCharacteristic GetInputCharacteristic(size_t index) const {
    return index < (form_ == Form::kPacked ? 1U : 3U) ? INPUT_OUTPUT_REQUIRED : INPUT_OUTPUT_OPTIONAL;
  }

  size_t GetOutputTypeCount() const { return 2; }
  ONNXTensorElementDataType GetOutputType(size_t index) const {
    return index == 0 ? type_ : ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT;
  }
  OrtCustomOpInputOutputCharacteristic GetOutputCharacteristic(size_t index) const {
    return index == 0 ? INPUT_OUTPUT_REQUIRED : INPUT_OUTPUT_OPTIONAL;
  }

  OrtStatusPtr CreateKernelV2(const OrtApi&, const OrtKernelInfo* info, void** kernel) const noexcept {
    return create_kernel<Kernel>(form_, type_, info, kernel);
  }

 private:
  Form form_;
  ONNXTensorElementDataType type_;
  const char* provider_;
};

// Adds both operators, for every type, to the domain. They are never released: sessions refer to them until the process
// ends.
template <typename Kernel>
void add_operators(Ort::CustomOpDomain& domain, const char* provider) {
  for (const auto form : {Form::kSeparate, Form::kPacked}) {
    for (const auto type : {ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT, ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT16,
                            ONNX_TENSOR_ELEMENT_DATA_TYPE_BFLOAT16}) {
      domain.Add(new AttentionOperator<Kernel>(form, type, provider));
    }
  }
}

// Adds the operators of every provider that the library is compiled for.
void add_all_operators(Ort::CustomOpDomain& domain);

}  // namespace na_deploy::ort
