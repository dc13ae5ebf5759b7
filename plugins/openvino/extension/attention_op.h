// Both operators as OpenVINO operators in C++, for hosts without Python. Bound to the release of OpenVINO that they are
// compiled with.
#pragma once

#include <openvino/frontend/node_context.hpp>
#include <openvino/op/op.hpp>

#include <memory>
#include <vector>

#include "../attention_node.h"

namespace na_deploy::openvino {

// One attention node. Its clones share what it keeps: plans for shapes.
class AttentionOp : public ov::op::Op {
 public:
  OPENVINO_OP("AttentionOp", "na_deploy")

  void validate_and_infer_types() override;
  std::shared_ptr<ov::Node> clone_with_new_inputs(const ov::OutputVector& inputs) const override;
  bool visit_attributes(ov::AttributeVisitor& visitor) override;
  bool evaluate(ov::TensorVector& outputs, const ov::TensorVector& inputs) const override;
  bool has_evaluate() const override { return true; }

  // Takes inputs and attributes of a node in an ONNX file.
  void read(const ov::frontend::NodeContext& context);

 protected:
  virtual OperatorKind kind() const = 0;
  virtual std::shared_ptr<AttentionOp> make() const = 0;

 private:
  int64_t place_of_bias() const;  // among the given inputs; -1 without one

  std::vector<int64_t> kernel_size_{0}, dilation_{1}, stride_{1}, is_causal_{0};
  float scale_ = 0.0F;
  std::vector<int64_t> given_{0};  // the operator's inputs that the node has
  int64_t results_ = 2;            // output and lse, which is computed where it is read
  std::shared_ptr<AttentionNode> node_;
};

class NeighborhoodAttention : public AttentionOp {
 public:
  OPENVINO_OP("NeighborhoodAttention", "na_deploy", AttentionOp)

 private:
  OperatorKind kind() const override { return OperatorKind::kSeparate; }
  std::shared_ptr<AttentionOp> make() const override { return std::make_shared<NeighborhoodAttention>(); }
};

class NeighborhoodAttentionQKV : public AttentionOp {
 public:
  OPENVINO_OP("NeighborhoodAttentionQKV", "na_deploy", AttentionOp)

 private:
  OperatorKind kind() const override { return OperatorKind::kPacked; }
  std::shared_ptr<AttentionOp> make() const override { return std::make_shared<NeighborhoodAttentionQKV>(); }
};

}  // namespace na_deploy::openvino
