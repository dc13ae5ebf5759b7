#include "attention_op.h"

#include <openvino/core/attribute_visitor.hpp>
#include <openvino/op/constant.hpp>

#include <algorithm>
#include <cstddef>

namespace na_deploy::openvino {
namespace {

na_dtype dtype_of(const ov::element::Type& type) {
  if (type == ov::element::f16) return NA_FLOAT16;
  return type == ov::element::bf16 ? NA_BFLOAT16 : NA_FLOAT32;
}

Input to_input(const ov::PartialShape& shape) {
  Input input;
  input.rank = static_cast<int>(shape.size());
  for (size_t axis = 0; axis < std::min<size_t>(shape.size(), kMostSizes); ++axis) {
    input.size[axis] = shape[axis].is_static() ? shape[axis].get_length() : -1;
  }
  return input;
}

}  // namespace

void AttentionOp::read(const ov::frontend::NodeContext& context) {
  const std::vector<int64_t> none;
  kernel_size_ = context.get_attribute<std::vector<int64_t>>("kernel_size", none);
  dilation_ = context.get_attribute<std::vector<int64_t>>("dilation", none);
  stride_ = context.get_attribute<std::vector<int64_t>>("stride", none);
  is_causal_ = context.get_attribute<std::vector<int64_t>>("is_causal", none);
  scale_ = context.get_attribute<float>("scale", 0.0F);
  for (int64_t& is_causal : is_causal_) is_causal = is_causal != 0 ? 1 : 0;
  given_.clear();
  ov::OutputVector inputs;
  for (size_t i = 0; i < context.get_input_size(); ++i) {
    const ov::Output<ov::Node> input = context.get_input(static_cast<int>(i));
    if (std::string(input.get_node()->get_type_name()) == "NullNode") continue;  // left out
    given_.push_back(static_cast<int64_t>(i));
    inputs.push_back(input);
  }
  set_arguments(inputs);
  constructor_validate_and_infer_types();
}

int64_t AttentionOp::place_of_bias() const {
  const auto found = std::find(given_.begin(), given_.end(), bias_input(kind()));
  return found == given_.end() ? -1 : found - given_.begin();
}

void AttentionOp::validate_and_infer_types() {
  const auto refuse = [this](const char* words) { NODE_VALIDATION_CHECK(this, false, words); };
  try {
    if (node_ == nullptr) {
      node_ =
          std::make_shared<AttentionNode>(kind(), AttributeLists{kernel_size_, dilation_, stride_, is_causal_, scale_});
    }
    bool ranks_known = true;
    Input inputs[kMostInputs];
    for (size_t i = 0; i < get_input_size(); ++i) {
      const ov::PartialShape& shape = get_input_partial_shape(i);
      ranks_known = ranks_known && shape.rank().is_static();
      if (ranks_known) inputs[given_.at(i)] = to_input(shape);
    }
    for (int64_t result = 0; result < results_; ++result) {
      ov::PartialShape shape = ov::PartialShape::dynamic();
      if (ranks_known) {
        const std::vector<int64_t> sizes = node_->output_sizes(inputs, result == 0);
        shape = ov::PartialShape(std::vector<ov::Dimension>(sizes.begin(), sizes.end()));
      }
      const auto place = static_cast<size_t>(result);
      set_output_type(place, result == 0 ? get_input_element_type(0) : ov::element::f32, shape);
    }
  } catch (const InvalidNode& error) {
    refuse(error.what());
  }
}

std::shared_ptr<ov::Node> AttentionOp::clone_with_new_inputs(const ov::OutputVector& inputs) const {
  const std::shared_ptr<AttentionOp> copy = make();
  copy->kernel_size_ = kernel_size_;
  copy->dilation_ = dilation_;
  copy->stride_ = stride_;
  copy->is_causal_ = is_causal_;
  copy->scale_ = scale_;
  copy->given_ = given_;
  copy->results_ = results_;
  copy->node_ = node_;
  copy->set_arguments(inputs);
  copy->constructor_validate_and_infer_types();
  return copy;
}

bool AttentionOp::visit_attributes(ov::AttributeVisitor& visitor) {
  visitor.on_attribute("kernel_size", kernel_size_);
  visitor.on_attribute("dilation", dilation_);
  visitor.on_attribute("stride", stride_);
  visitor.on_attribute("is_causal", is_causal_);
  visitor.on_attribute("scale", scale_);
  visitor.on_attribute("given", given_);
  visitor.on_attribute("results", results_);
  return true;
}

bool AttentionOp::evaluate(ov::TensorVector& outputs, const ov::TensorVector& inputs) const {
  Tensors tensors;
  tensors.dtype = dtype_of(inputs.at(0).get_element_type());
  for (size_t i = 0; i < inputs.size(); ++i) {
    Input& input = tensors.inputs[given_.at(i)];
    input = to_input(ov::PartialShape(inputs[i].get_shape()));
    input.data = inputs[i].data();
  }
  const int64_t bias = place_of_bias();
  if (bias >= 0) {
    const auto place = static_cast<size_t>(bias);
    tensors.bias_is_float32 = inputs[place].get_element_type() == ov::element::f32;
    tensors.constant_bias = ov::is_type<ov::op::v0::Constant>(get_input_node_ptr(place));
  }
  try {
    for (size_t i = 0; i < outputs.size(); ++i) {
      if (outputs[i].get_shape() != ov::Shape{0}) continue;  // else OpenVINO leaves the shape to the node
      const std::vector<int64_t> sizes = node_->output_sizes(tensors.inputs, i == 0);
      outputs[i].set_shape(ov::Shape(sizes.begin(), sizes.end()));
    }
    tensors.output = outputs.at(0).data();
    const bool wants_lse = outputs.size() > 1 && !output(1).get_target_inputs().empty();
    if (wants_lse) tensors.lse = outputs[1].data<float>();
    node_->run(tensors);
  } catch (const InvalidNode& error) {
    OPENVINO_THROW(get_type_name(), " node '", get_friendly_name(), "': ", error.what());
  }
  return true;
}

}  // namespace na_deploy::openvino
