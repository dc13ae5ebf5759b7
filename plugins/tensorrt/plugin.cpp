#include "plugin.h"

#include <algorithm>
#include <cstdio>
#include <exception>
#include <new>
#include <utility>

#include "na_cuda.h"
#include "operator.h"

namespace na_deploy::trt {
namespace {

using nvinfer1::DataType;
using nvinfer1::Dims;
using nvinfer1::DynamicPluginTensorDesc;

constexpr int32_t kMostTactics = 32;
constexpr char kSomeTensor = 0;  // placeholder for a tensor that is given but not yet in memory

na_dtype dtype_of(DataType type) {
  return type == DataType::kHALF ? NA_FLOAT16 : type == DataType::kBF16 ? NA_BFLOAT16 : NA_FLOAT32;
}

bool is_known(DataType type) { return type == DataType::kFLOAT || type == DataType::kHALF || type == DataType::kBF16; }

// Returns whether the operator takes this number of inputs; additional keys and values come together.
bool takes_inputs(OperatorKind kind, int32_t inputs) {
  if (inputs < required_inputs(kind) || inputs > most_inputs(kind)) return false;
  return kind == OperatorKind::kPacked || inputs != 5;
}

Input input_of(const Dims& dims) {
  Input input;
  input.rank = dims.nbDims;
  std::copy_n(dims.d, dims.nbDims, input.size);
  input.data = &kSomeTensor;
  return input;
}

bool is_complete(const na_params& p) {
  const bool has_lengths = std::all_of(p.length, p.length + p.rank, [](int64_t length) { return length >= 0; });
  return p.batch >= 0 && has_lengths && p.heads >= 0 && p.key_heads >= 0 && p.head_dim >= 0 && p.value_dim >= 0 &&
         p.additional >= 0;
}

// Sets sizes and type of a call in `params`, which holds the attributes. Returns an empty string, or a sentence about
// why no kernel takes the call. Unknown sizes are -1.
std::string set_call(const Input (&inputs)[kMostInputs], DataType type, na_params& params) {
  params.dtype = dtype_of(type);
  std::string wrong = set_inputs(inputs, params);
  char message[256] = "";
  if (wrong.empty() && is_complete(params) && na_cuda_check(&params, message, sizeof message) != 0) wrong = message;
  return wrong;
}

std::vector<int32_t> tactics_of(const na_params& params) {
  std::vector<int32_t> tactics(kMostTactics);
  tactics.resize(static_cast<size_t>(na_cuda_tactics(&params, tactics.data(), kMostTactics)));
  return tactics;
}

}  // namespace

AttentionPlugin::AttentionPlugin(Attributes attributes)
    : attributes_(attributes), timing_cache_id_(timing_cache_id(attributes_)) {}

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
    auto* copy = new AttentionPlugin(attributes_);
    copy->tactics_ = tactics_;
    copy->call_ = call_;
    copy->call_tactic_ = call_tactic_;
    return copy;
  } catch (const std::bad_alloc&) {
    return nullptr;
  }
}

// Checks all three shapes of a profile, and offers the tactics that compute all of them, the quickest for the usual
// shape first.
int32_t AttentionPlugin::configurePlugin(const DynamicPluginTensorDesc* in, int32_t inputs,
                                         const DynamicPluginTensorDesc* /*out*/, int32_t /*outputs*/) noexcept {
  try {
    if (!takes_inputs(kind(), inputs)) {
      say(kind(), "it takes other numbers of inputs than " + std::to_string(inputs));
      return 1;
    }
    using Shape = Dims DynamicPluginTensorDesc::*;
    const std::pair<const char*, Shape> shapes[] = {{"usual", &DynamicPluginTensorDesc::opt},
                                                    {"smallest", &DynamicPluginTensorDesc::min},
                                                    {"largest", &DynamicPluginTensorDesc::max}};
    for (const auto& [name, shape] : shapes) {
      Input given[kMostInputs];
      bool differs = false;
      for (int32_t i = 0; i < inputs; ++i) {
        const Dims& fixed = in[i].desc.dims;
        const Dims& own = in[i].*shape;
        const bool is_stated = own.nbDims > 0 && own.nbDims == fixed.nbDims && own.d[0] >= 0;
        given[i] = input_of(is_stated ? own : fixed);
        differs = differs || (is_stated && !std::equal(own.d, own.d + own.nbDims, fixed.d));
      }
      na_params params = attributes_.params;
      const std::string wrong = set_call(given, in[0].desc.type, params);
      if (!wrong.empty()) {
        say(kind(), (differs ? std::string("at the profile's ") + name + " shape: " : std::string()) + wrong);
        return 1;
      }
      const std::vector<int32_t> tactics = tactics_of(params);
      if (shape == &DynamicPluginTensorDesc::opt) tactics_ = tactics;
      tactics_.erase(std::remove_if(tactics_.begin(), tactics_.end(),
                                    [&](int32_t tactic) {
                                      return std::find(tactics.begin(), tactics.end(), tactic) == tactics.end();
                                    }),
                     tactics_.end());
    }
    return 0;
  } catch (const std::exception& error) {
    say(kind(), error.what());
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
  const bool packed = kind() == OperatorKind::kPacked;
  const int32_t rank = attributes_.params.rank;
  if (!takes_inputs(kind(), inputs) || outputs < 1 || in[0].nbDims != rank + (packed ? 4 : 3)) return 1;
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
  if (!takes_inputs(kind(), inputs) || position < 0 || position >= inputs + outputs) return false;
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
  if (tactic != 0 && na_cuda_knows(tactic) == 0) {
    say(kind(), "there is no tactic " + std::to_string(tactic) + " in this library; build the engine again");
    return 1;
  }
  attributes_.tactic = tactic;
  return 0;
}

// Prepares everything that depends on shapes, so that enqueue only fills in pointers.
int32_t AttentionPlugin::onShapeChange(const nvinfer1::PluginTensorDesc* in, int32_t inputs,
                                       const nvinfer1::PluginTensorDesc* /*out*/, int32_t /*outputs*/) noexcept {
  try {
    if (!takes_inputs(kind(), inputs)) return 1;
    Input given[kMostInputs];
    for (int32_t i = 0; i < inputs; ++i) given[i] = input_of(in[i].dims);
    na_params params = attributes_.params;
    const std::string wrong = set_call(given, in[0].type, params);
    if (!wrong.empty()) {
      say(kind(), wrong);
      return 1;
    }
    const std::vector<int32_t> tactics = tactics_of(params);
    const auto wanted = static_cast<int32_t>(attributes_.tactic);
    const bool takes = std::find(tactics.begin(), tactics.end(), wanted) != tactics.end();
    if (wanted != 0 && !takes) {
      say(kind(), "the engine's tactic " + std::to_string(wanted) + " does not compute this shape; tactic " +
                      std::to_string(tactics[0]) + " does");
    }
    call_ = params;
    call_tactic_ = takes ? wanted : tactics[0];
    return 0;
  } catch (const std::exception& error) {
    say(kind(), error.what());
    return 1;
  }
}

int32_t AttentionPlugin::enqueue(const nvinfer1::PluginTensorDesc* /*in_desc*/,
                                 const nvinfer1::PluginTensorDesc* /*out_desc*/, const void* const* in,
                                 void* const* out, void* /*workspace*/, cudaStream_t stream) noexcept {
  na_params params = call_;
  if (params.batch == 0) return 0;  // nothing to write, and tensors without elements may have no memory
  params.query = in[0];
  if (params.rel_pos_bias != nullptr) params.rel_pos_bias = in[bias_input(kind())];
  if (params.packed != 0) {
    if (params.padding != nullptr) params.padding = in[2];
  } else {
    params.key = in[1];
    params.value = in[2];
    if (params.additional > 0) {
      params.additional_key = in[4];
      params.additional_value = in[5];
    }
  }
  params.output = out[0];
  params.lse = attributes_.with_lse != 0 ? static_cast<float*>(out[1]) : nullptr;
  char message[256] = "";
  if (na_cuda_check_addresses(&params, message, sizeof message) != 0) {
    std::fprintf(stderr, "na_deploy: %s: %s\n", getPluginName(), message);
    return 1;
  }
  const int32_t error = na_launch(&params, call_tactic_, reinterpret_cast<na_cuda_stream>(stream));
  if (error != 0 && error != last_error_) {
    std::fprintf(stderr, "na_deploy: %s: CUDA answers the launch with error %d, %s\n", getPluginName(), error,
                 na_cuda_error(error));
  }
  last_error_ = error;
  return error;
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
