#include "attributes.h"

#include <cstdio>
#include <cstring>
#include <utility>

#include "na_cuda.h"
#include "operator.h"

namespace na_deploy::trt {
namespace {

using nvinfer1::PluginField;
using nvinfer1::PluginFieldType;

// Reads integers of either width: TensorRT's parser gives 32 bits, other builders and our own engines 64.
bool read_integers(const PluginField& field, std::vector<int64_t>& values) {
  if (field.length < 0 || (field.length > 0 && field.data == nullptr)) return false;
  values.clear();
  for (int32_t i = 0; i < field.length; ++i) {
    if (field.type == PluginFieldType::kINT32) {
      values.push_back(static_cast<const int32_t*>(field.data)[i]);
    } else if (field.type == PluginFieldType::kINT64) {
      values.push_back(static_cast<const int64_t*>(field.data)[i]);
    } else {
      return false;
    }
  }
  return true;
}

// Reads one field. Returns an empty string, or a sentence about what is wrong. Fields of other names are ignored.
std::string read_field(const PluginField& field, AttributeLists& lists, Attributes& attributes) {
  const auto is = [&](const char* name) { return std::strcmp(field.name, name) == 0; };
  for (const auto& [name, values] :
       {std::pair{"kernel_size", &lists.kernel_size}, std::pair{"dilation", &lists.dilation},
        std::pair{"stride", &lists.stride}, std::pair{"is_causal", &lists.is_causal}}) {
    if (is(name) && !read_integers(field, *values)) return std::string(name) + " must be integers";
  }
  if (is("scale") && field.length > 0) {
    if (field.type != PluginFieldType::kFLOAT32 || field.data == nullptr) return "scale must be a float32 number";
    lists.scale = *static_cast<const float*>(field.data);
  }
  for (const auto& [name, value] :
       {std::pair{"with_lse", &attributes.with_lse}, std::pair{"tactic", &attributes.tactic}}) {
    if (!is(name) || field.length == 0) continue;
    std::vector<int64_t> values;
    if (!read_integers(field, values) || values.size() != 1) return std::string(name) + " must be one integer";
    *value = values[0];
  }
  return "";
}

}  // namespace

const nvinfer1::PluginFieldCollection& field_names() {
  static const PluginField kFields[] = {
      {"kernel_size", nullptr, PluginFieldType::kINT32, 0}, {"dilation", nullptr, PluginFieldType::kINT32, 0},
      {"stride", nullptr, PluginFieldType::kINT32, 0},      {"is_causal", nullptr, PluginFieldType::kINT32, 0},
      {"scale", nullptr, PluginFieldType::kFLOAT32, 1},     {"with_lse", nullptr, PluginFieldType::kINT32, 1},
  };
  static const nvinfer1::PluginFieldCollection kNames{6, kFields};
  return kNames;
}

std::string read_attributes(OperatorKind kind, const nvinfer1::PluginFieldCollection* fields, Attributes& attributes) {
  if (fields == nullptr || fields->nbFields < 0 || (fields->nbFields > 0 && fields->fields == nullptr)) {
    return "there are no fields";
  }
  AttributeLists lists;
  for (int32_t i = 0; i < fields->nbFields; ++i) {
    if (fields->fields[i].name == nullptr) continue;
    const std::string wrong = read_field(fields->fields[i], lists, attributes);
    if (!wrong.empty()) return wrong;
  }
  if (attributes.with_lse != 0 && attributes.with_lse != 1) {
    return "with_lse must be 0 or 1, got " + std::to_string(attributes.with_lse);
  }
  if (attributes.tactic != 0 && na_cuda_knows(static_cast<int32_t>(attributes.tactic)) == 0) {
    return "the engine was built with tactic " + std::to_string(attributes.tactic) +
           ", which this library does not have; build the engine again, or load the library that it was built with";
  }
  return set_attributes(kind, lists, attributes.params);
}

std::vector<PluginField> fields_of(const Attributes& attributes) {
  const na_params& p = attributes.params;
  return {{"kernel_size", p.kernel_size, PluginFieldType::kINT64, p.rank},
          {"dilation", p.dilation, PluginFieldType::kINT64, p.rank},
          {"stride", p.stride, PluginFieldType::kINT64, p.rank},
          {"is_causal", p.is_causal, PluginFieldType::kINT64, p.rank},
          {"scale", &p.scale, PluginFieldType::kFLOAT32, 1},
          {"with_lse", &attributes.with_lse, PluginFieldType::kINT64, 1},
          {"tactic", &attributes.tactic, PluginFieldType::kINT64, 1}};
}

std::string timing_cache_id(const Attributes& attributes) {
  const na_params& p = attributes.params;
  std::string text = std::string("kernels ") + na_cuda_revision() + ";";
  for (const auto& [name, values] : {std::pair{" kernel_size", p.kernel_size}, std::pair{" dilation", p.dilation},
                                     std::pair{" stride", p.stride}, std::pair{" is_causal", p.is_causal}}) {
    text += name;
    for (int32_t axis = 0; axis < p.rank; ++axis) text += " " + std::to_string(values[axis]);
    text += ";";
  }
  char rest[64];
  std::snprintf(rest, sizeof rest, " scale %.9g; with_lse %d", static_cast<double>(p.scale),
                static_cast<int>(attributes.with_lse));
  return text + rest;
}

void say(OperatorKind kind, const std::string& sentence) {
  std::fprintf(stderr, "na_deploy: %s: %s\n", name_of(kind), sentence.c_str());
}

}  // namespace na_deploy::trt
