// The entry point that OpenVINO calls: Core.add_extension("libna_deploy_openvino_extension.so").
#include <openvino/core/extension.hpp>
#include <openvino/core/op_extension.hpp>
#include <openvino/frontend/onnx/extension/conversion.hpp>

#include "attention_op.h"

namespace {

template <typename Operator>
ov::Extension::Ptr conversion(const char* name) {
  return std::make_shared<ov::frontend::onnx::ConversionExtension>(name, "na_deploy",
                                                                   [](const ov::frontend::NodeContext& context) {
                                                                     const auto made = std::make_shared<Operator>();
                                                                     made->read(context);
                                                                     return made->outputs();
                                                                   });
}

}  // namespace

OPENVINO_CREATE_EXTENSIONS(std::vector<ov::Extension::Ptr>({
    std::make_shared<ov::OpExtension<na_deploy::openvino::NeighborhoodAttention>>(),
    std::make_shared<ov::OpExtension<na_deploy::openvino::NeighborhoodAttentionQKV>>(),
    conversion<na_deploy::openvino::NeighborhoodAttention>("NeighborhoodAttention"),
    conversion<na_deploy::openvino::NeighborhoodAttentionQKV>("NeighborhoodAttentionQKV"),
}))
