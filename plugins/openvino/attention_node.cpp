#include "attention_node.h"

#include <tbb/blocked_range.h>
#include <tbb/parallel_for.h>
#include <tbb/partitioner.h>
#include <tbb/task_arena.h>

#include <string>

#include "call.h"

namespace na_deploy::openvino {
namespace {

void expect_none(const std::string& wrong) {
  if (!wrong.empty()) throw InvalidNode(wrong);
}

}  // namespace

AttentionNode::AttentionNode(OperatorKind kind, const AttributeLists& attributes) {
  expect_none(set_attributes(kind, attributes, attributes_));
}

std::vector<int64_t> AttentionNode::output_sizes(const Input (&inputs)[kMostInputs], bool with_channels) const {
  na_params params = attributes_;
  expect_none(set_inputs(inputs, params));
  return output_shape(params, with_channels);
}

void AttentionNode::run(const Tensors& tensors) {
  na_params params = attributes_;
  params.dtype = tensors.dtype;
  params.bias_is_float32 = tensors.bias_is_float32 ? 1 : 0;
  expect_none(set_inputs(tensors.inputs, params));
  char message[256] = "";
  if (na_check(&params, message, sizeof message) != 0) throw InvalidNode(message);
  params.output = tensors.output;
  params.lse = tensors.lse;
  cpu::Call call(params, plans_, tensors.constant_bias, tbb::this_task_arena::max_concurrency());
  if (call.pieces() == 1) {
    call.run(0);
  } else if (call.pieces() > 1) {
    tbb::parallel_for(
        tbb::blocked_range<int64_t>(0, call.pieces()),
        [&call](const tbb::blocked_range<int64_t>& pieces) {
          for (int64_t piece = pieces.begin(); piece < pieces.end(); ++piece) call.run(piece);
        },
        tbb::simple_partitioner());
  }
  call.finish();
}

}  // namespace na_deploy::openvino
