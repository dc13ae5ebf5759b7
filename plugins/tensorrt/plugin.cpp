#include "plugin.h"

#include <array>
#include <exception>
#include <new>
#include <utility>

#include "na_cuda.h"
#include "sizes.h"

namespace na_deploy::trt {
namespace {

using nvinfer1::DataType;
using nvinfer1::Dims;
using nvinfer1::DynamicPluginTensorDesc;

constexpr int32_t kMostTactics = 16;

bool is_known(DataType type) { return type == DataType::kFLOAT || type == DataType::kHALF || type == DataType::kBF16; }

}  // namespace

AttentionPlugin::AttentionPlugin(Form form, Attributes attributes)
    : form_(form), attributes_(std::move(attributes)), timing_cache_id_(text_of(attributes_)) {}

nvinfer1::IPluginCapability* AttentionPlugin::getCapabilityInterface(nvinfer1::PluginCapabilityType type) noexcept {
  switch (type) {
    case nvinfer1::PluginCapabilityType::kCORE:
      return static_cast<nvinfer1::v_1_0::IPluginV3OneCore*>(this);
    case nvinfer1::PluginCapabilityType::kBUILD:
      return static_cast<nvinfer1::v_1_0::IPluginV3OneBuild*>(this);
    case nvinfer1::PluginCapabilityType::kRUNTIME:
      return static_cast<nvinfer1::v_1_0::IPluginV3OneRuntime*>(this);
  }
  return nullptr;
}

nvinfer1::IPluginV3* AttentionPlugin::clone() noexcept {
  try {
    auto* copy = new AttentionPlugin(form_, attributes_);
    copy->tactics_ = tactics_;
    copy->sizes_ = sizes_;
    copy->inputs_ = inputs_;
    return copy;
  } catch (const std::bad_alloc&) {
    return nullptr;
  }
}

int32_t AttentionPlugin::configurePlugin(const DynamicPluginTensorDesc* in, int32_t inputs,
                                         const DynamicPluginTensorDesc* /*out*/, int32_t /*outputs*/) noexcept {
  try {
    if (inputs < 1 || inputs > kMostInputs) return 1;
    std::array<const Dims*, kMostInputs> usual{};
    std::array<const Dims*, kMostInputs> largest{};
    for (int32_t i = 0; i < inputs; ++i) {
      usual[static_cast<size_t>(i)] = in[i].opt.nbDims > 0 && in[i].opt.d[0] >= 0 ? &in[i].opt : &in[i].desc.dims;
      largest[static_cast<size_t>(i)] = in[i].max.nbDims > 0 && in[i].max.d[0] >= 0 ? &in[i].max : &in[i].desc.dims;
    }
    na_params params;
    std::string wrong = read_sizes(form_, attributes_, largest.data(), in[0].desc.type, inputs, params);
    char message[256] = "";
    const bool known = params.batch >= 0 && params.length[0] >= 0;
    params.batch = 0;  // no tensors to look at
    if (wrong.empty() && known && na_cuda_check(&params, message, sizeof message) != 0) wrong = message;
    if (!wrong.empty()) {
      refuse(form_, wrong);
      return 1;
    }
    wrong = read_sizes(form_, attributes_, usual.data(), in[0].desc.type, inputs, params);
    tactics_.assign(kMostTactics, 0);
    tactics_.resize(static_cast<size_t>(na_cuda_tactics(&params, tactics_.data(), kMostTactics)));
    return wrong.empty() ? 0 : 1;
  } catch (const std::exception& error) {
    refuse(form_, error.what());
    return 1;
  }
}

int32_t AttentionPlugin::getOutputDataTypes(DataType* types, int32_t outputs, const DataType* input_types,
                                            int32_t inputs) const noexcept {
  if (inputs < 1 || outputs < 1) return 1;
  types[0] = input_types[0];
  if (outputs > 1) types[1] = DataType::kFLOAT;
  return 0;
}

int32_t AttentionPlugin::getOutputShapes(const nvinfer1::DimsExprs* in, int32_t inputs,
                                         const nvinfer1::DimsExprs* /*shape_inputs*/, int32_t /*shape_input_count*/,
                                         nvinfer1::DimsExprs* out, int32_t outputs,
                                         nvinfer1::IExprBuilder& /*builder*/) noexcept {
  const bool packed = form_ == Form::kPacked;
  const int32_t rank = attributes_.rank();
  if (!takes_inputs(form_, inputs) || outputs < 1 || in[0].nbDims != rank + (packed ? 4 : 3)) return 1;
  if (!packed && in[2].nbDims != rank + 3) return 1;
  nvinfer1::DimsExprs shape{};
  shape.nbDims = rank + 3;
  for (int32_t a = 0; a <= rank; ++a) shape.d[a] = in[0].d[a];
  shape.d[rank + 1] = in[0].d[in[0].nbDims - 2];
  shape.d[rank + 2] = packed ? in[0].d[in[0].nbDims - 1] : in[2].d[rank + 2];
  out[0] = shape;
  if (outputs > 1) {
    shape.nbDims = rank + 2;
    out[1] = shape;
  }
  return 0;
}

bool AttentionPlugin::supportsFormatCombination(int32_t position, const DynamicPluginTensorDesc* tensors,
                                                int32_t inputs, int32_t outputs) noexcept {
  if (!takes_inputs(form_, inputs) || position < 0 || position >= inputs + outputs) return false;
  const nvinfer1::PluginTensorDesc& own = tensors[position].desc;
  if (own.format != nvinfer1::TensorFormat::kLINEAR) return false;
  if (position == inputs + 1) return own.type == DataType::kFLOAT;
  if (position == 0) return is_known(own.type);
  return own.type == tensors[0].desc.type;
}

int32_t AttentionPlugin::getValidTactics(int32_t* tactics, int32_t count) noexcept {
  for (int32_t i = 0; i < count && i < getNbTactics(); ++i) tactics[i] = tactics_[static_cast<size_t>(i)];
  return 0;
}

int32_t AttentionPlugin::setTactic(int32_t tactic) noexcept {
  attributes_.tactic = tactic;
  return 0;
}

int32_t AttentionPlugin::onShapeChange(const nvinfer1::PluginTensorDesc* in, int32_t inputs,
                                       const nvinfer1::PluginTensorDesc* /*out*/, int32_t /*outputs*/) noexcept {
  try {
    if (inputs < 1 || inputs > kMostInputs) return 1;
    std::array<const Dims*, kMostInputs> dims{};
    for (int32_t i = 0; i < inputs; ++i) dims[static_cast<size_t>(i)] = &in[i].dims;
    std::string wrong = read_sizes(form_, attributes_, dims.data(), in[0].type, inputs, sizes_);
    na_params empty = sizes_;
    empty.batch = 0;  // no tensors to look at
    char message[256] = "";
    if (wrong.empty() && na_cuda_check(&empty, message, sizeof message) != 0) wrong = message;
    if (!wrong.empty()) {
      refuse(form_, wrong);
      return 1;
    }
    inputs_ = inputs;
    return 0;
  } catch (const std::exception& error) {
    refuse(form_, error.what());
    return 1;
  }
}

int32_t AttentionPlugin::enqueue(const nvinfer1::PluginTensorDesc* /*in_desc*/,
                                 const nvinfer1::PluginTensorDesc* /*out_desc*/, const void* const* in,
                                 void* const* out, void* /*workspace*/, cudaStream_t stream) noexcept {
  na_params params = sizes_;
  params.query = in[0];
  const int32_t bias = bias_input(form_, inputs_);
  if (bias >= 0) params.rel_pos_bias = in[bias];
  if (form_ == Form::kPacked) {
    if (inputs_ > 2) params.padding = in[2];
  } else {
    params.key = in[1];
    params.value = in[2];
    if (params.additional > 0) {
      params.additional_key = in[4];
      params.additional_value = in[5];
    }
  }
  params.output = out[0];
  params.lse = static_cast<float*>(out[1]);
  return na_forward(&params, attributes_.tactic, reinterpret_cast<na_cuda_stream>(stream));
}

nvinfer1::IPluginV3* AttentionPlugin::attachToContext(nvinfer1::IPluginResourceContext* /*context*/) noexcept {
  return clone();
}

const nvinfer1::PluginFieldCollection* AttentionPlugin::getFieldsToSerialize() noexcept {
  try {
    fields_ = fields_of(attributes_);
  } catch (const std::bad_alloc&) {
    return nullptr;
  }
  serialized_ = {static_cast<int32_t>(fields_.size()), fields_.data()};
  return &serialized_;
}

}  // namespace na_deploy::trt
