// A node's attributes as TensorRT's parser and serialised engines deliver them, and back.
#pragma once

#include <NvInferRuntime.h>

#include <cstdint>
#include <string>
#include <vector>

namespace na_deploy::trt {

enum class Form { kPacked, kSeparate };

inline const char* name_of(Form form) {
  return form == Form::kPacked ? "NeighborhoodAttentionQKV" : "NeighborhoodAttention";
}

// One value per spatial axis each; `scale` 0 means head_dim ** -0.5.
struct Attributes {
  std::vector<int32_t> kernel_size;
  std::vector<int32_t> dilation;
  std::vector<int32_t> stride;
  std::vector<int32_t> is_causal;
  float scale = 0.0F;
  int32_t tactic = 0;  // the one an engine was built with; 0 for the default

  int32_t rank() const { return static_cast<int32_t>(kernel_size.size()); }
};

// The names of the fields, which is all that the parser passes on.
const nvinfer1::PluginFieldCollection& field_names();

// Reads fields. Returns an empty string, or a sentence about what is wrong with them.
std::string read_attributes(const nvinfer1::PluginFieldCollection* fields, Attributes& attributes);

// Fields that point into `attributes`.
std::vector<nvinfer1::PluginField> fields_of(const Attributes& attributes);

// What tells two nodes apart for the timing cache; sizes and types are TensorRT's to add.
std::string text_of(const Attributes& attributes);

// Tells a refusal on standard error: a plugin library for several TensorRT versions has no logger to call.
void refuse(Form form, const std::string& sentence);

}  // namespace na_deploy::trt
