// One neighborhood attention node in a TensorRT network or engine, of either operator.
#pragma once

#include <NvInferRuntime.h>

#include <string>
#include <vector>

#include "attributes.h"
#include "na_params.h"

namespace na_deploy::trt {

// The plugin uses the first version of the build interface, so that the library loads into every release of TensorRT
// 10. The second version adds only outputs that share memory with inputs, which attention does not have.
class AttentionPlugin final : public nvinfer1::IPluginV3,
                              public nvinfer1::v_1_0::IPluginV3OneCore,
                              public nvinfer1::v_1_0::IPluginV3OneBuild,
                              public nvinfer1::v_1_0::IPluginV3OneRuntime {
 public:
  explicit AttentionPlugin(Attributes attributes);

  nvinfer1::IPluginCapability* getCapabilityInterface(nvinfer1::PluginCapabilityType type) noexcept override;
  nvinfer1::IPluginV3* clone() noexcept override;

  const char* getPluginName() const noexcept override { return name_of(kind()); }
  const char* getPluginVersion() const noexcept override { return "1"; }
  const char* getPluginNamespace() const noexcept override { return "na_deploy"; }

  int32_t getNbOutputs() const noexcept override { return 1 + static_cast<int32_t>(attributes_.with_lse); }
  int32_t configurePlugin(const nvinfer1::DynamicPluginTensorDesc* in, int32_t inputs,
                          const nvinfer1::DynamicPluginTensorDesc* out, int32_t outputs) noexcept override;
  int32_t getOutputDataTypes(nvinfer1::DataType* types, int32_t outputs, const nvinfer1::DataType* input_types,
                             int32_t inputs) const noexcept override;
  int32_t getOutputShapes(const nvinfer1::DimsExprs* in, int32_t inputs, const nvinfer1::DimsExprs* shape_inputs,
                          int32_t shape_input_count, nvinfer1::DimsExprs* out, int32_t outputs,
                          nvinfer1::IExprBuilder& builder) noexcept override;
  bool supportsFormatCombination(int32_t position, const nvinfer1::DynamicPluginTensorDesc* tensors, int32_t inputs,
                                 int32_t outputs) noexcept override;
  int32_t getNbTactics() noexcept override { return static_cast<int32_t>(tactics_.size()); }
  int32_t getValidTactics(int32_t* tactics, int32_t count) noexcept override;
  const char* getTimingCacheID() noexcept override { return timing_cache_id_.c_str(); }

  int32_t setTactic(int32_t tactic) noexcept override;
  int32_t onShapeChange(const nvinfer1::PluginTensorDesc* in, int32_t inputs, const nvinfer1::PluginTensorDesc* out,
                        int32_t outputs) noexcept override;
  int32_t enqueue(const nvinfer1::PluginTensorDesc* in_desc, const nvinfer1::PluginTensorDesc* out_desc,
                  const void* const* in, void* const* out, void* workspace, cudaStream_t stream) noexcept override;
  nvinfer1::IPluginV3* attachToContext(nvinfer1::IPluginResourceContext* context) noexcept override;
  const nvinfer1::PluginFieldCollection* getFieldsToSerialize() noexcept override;

 private:
  OperatorKind kind() const { return kind_of(attributes_.params); }

  Attributes attributes_;
  std::string timing_cache_id_;
  std::vector<int32_t> tactics_;
  std::vector<nvinfer1::PluginField> fields_;
  nvinfer1::PluginFieldCollection serialized_{};
  // The last shapes and the tactic for them. Pointers to inputs that the node has are not null; enqueue sets them.
  na_params call_{};
  int32_t call_tactic_ = 0;
  int32_t last_error_ = 0;  // last error of CUDA, so that a repeated error is reported once
};

}  // namespace na_deploy::trt
