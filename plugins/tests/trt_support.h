// Parts of programs that call the TensorRT plugin as TensorRT would.
#pragma once

#include <NvInferRuntime.h>

#include <cstdint>
#include <vector>

namespace na_deploy::trt_tests {

// A dimension named by a number, so that shapes can be followed.
class Dim final : public nvinfer1::IDimensionExpr {
 public:
  explicit Dim(int64_t own_value) : value(own_value) {}
  int64_t value;
};

class Builder final : public nvinfer1::IExprBuilder {};

template <typename T>
T* capability(nvinfer1::IPluginV3& plugin, nvinfer1::PluginCapabilityType type) {
  return static_cast<T*>(plugin.getCapabilityInterface(type));
}

inline nvinfer1::PluginField ints(const char* name, const std::vector<int32_t>& values) {
  return {name, values.data(), nvinfer1::PluginFieldType::kINT32, static_cast<int32_t>(values.size())};
}

// A tensor of one shape in every profile.
inline nvinfer1::DynamicPluginTensorDesc tensor(const std::vector<int64_t>& sizes, nvinfer1::DataType type) {
  nvinfer1::DynamicPluginTensorDesc r{};
  r.desc.type = type;
  r.desc.format = nvinfer1::TensorFormat::kLINEAR;
  r.desc.dims.nbDims = static_cast<int32_t>(sizes.size());
  for (size_t i = 0; i < sizes.size(); ++i) r.desc.dims.d[i] = sizes[i];
  r.min = r.opt = r.max = r.desc.dims;
  return r;
}

}  // namespace na_deploy::trt_tests
