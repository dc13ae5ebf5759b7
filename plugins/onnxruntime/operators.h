// The operators as ONNX Runtime sees them: name, inputs, outputs, types. One object per operator and type.
#pragma once

#include "api.h"
#include "attention_kernel.h"
#include "form.h"
#include "shape_inference.h"

namespace na_deploy {

class AttentionOperator : public Ort::CustomOpBase<AttentionOperator, AttentionKernel, true> {
 public:
  AttentionOperator(Form form, ONNXTensorElementDataType type) : form_(form), type_(type) {
    OrtCustomOp::version = kOrtApi;
    OrtCustomOp::InferOutputShapeFn = [](const OrtCustomOp* self, OrtShapeInferContext* context) -> OrtStatusPtr {
      return infer_shapes(static_cast<const AttentionOperator*>(self)->form_, context);
    };
  }

  const char* GetName() const { return name_of(form_); }
  const char* GetExecutionProviderType() const { return "CPUExecutionProvider"; }

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
    return AttentionKernel::create(form_, type_, info, kernel);
  }

 private:
  Form form_;
  ONNXTensorElementDataType type_;
};

}  // namespace na_deploy
