#include "attributes.h"

#include <cstdio>
#include <cstring>

namespace na_deploy::trt {
namespace {

using nvinfer1::PluginField;
using nvinfer1::PluginFieldType;

constexpr int32_t kMostAxes = 3;

struct AxisField {
  const char* name;
  std::vector<int32_t> Attributes::* values;
  int32_t neutral;
};
constexpr AxisField kAxisFields[] = {
    {"kernel_size", &Attributes::kernel_size, 0},
    {"dilation", &Attributes::dilation, 1},
    {"stride", &Attributes::stride, 1},
    {"is_causal", &Attributes::is_causal, 0},
};

// Integers of either width; TensorRT's parser gives 32 bits, other builders 64.
bool read_integers(const PluginField& field, std::vector<int32_t>& values) {
  if (field.length < 0 || (field.length > 0 && field.data == nullptr)) return false;
  values.clear();
  for (int32_t i = 0; i < field.length; ++i) {
    if (field.type == PluginFieldType::kINT32) {
      values.push_back(static_cast<const int32_t*>(field.data)[i]);
    } else if (field.type == PluginFieldType::kINT64) {
      const int64_t value = static_cast<const int64_t*>(field.data)[i];
      if (value < INT32_MIN || value > INT32_MAX) return false;
      values.push_back(static_cast<int32_t>(value));
    } else {
      return false;
    }
  }
  return true;
}

std::string check_axes(Attributes& attributes) {
  const size_t rank = attributes.kernel_size.size();
  if (rank < 1 || rank > kMostAxes) {
    return "kernel_size must have 1 to 3 entries, one per spatial axis, got " + std::to_string(rank);
  }
  for (const AxisField& axis : kAxisFields) {
    std::vector<int32_t>& values = attributes.*axis.values;
    if (values.empty()) values.assign(rank, axis.neutral);
    if (values.size() == 1) values.assign(rank, values[0]);
    if (values.size() != rank) {
      return std::string(axis.name) + " has " + std::to_string(values.size()) + " entries and kernel_size " +
             std::to_string(rank);
    }
  }
  return "";
}

}  // namespace

const nvinfer1::PluginFieldCollection& field_names() {
  static const PluginField kFields[] = {
      {"kernel_size", nullptr, PluginFieldType::kINT32, 0}, {"dilation", nullptr, PluginFieldType::kINT32, 0},
      {"stride", nullptr, PluginFieldType::kINT32, 0},      {"is_causal", nullptr, PluginFieldType::kINT32, 0},
      {"scale", nullptr, PluginFieldType::kFLOAT32, 1},
  };
  static const nvinfer1::PluginFieldCollection kNames{5, kFields};
  return kNames;
}

std::string read_attributes(const nvinfer1::PluginFieldCollection* fields, Attributes& attributes) {
  if (fields == nullptr || fields->nbFields < 0 || (fields->nbFields > 0 && fields->fields == nullptr)) {
    return "there are no fields";
  }
  for (int32_t i = 0; i < fields->nbFields; ++i) {
    const PluginField& field = fields->fields[i];
    if (field.name == nullptr) continue;
    for (const AxisField& axis : kAxisFields) {
      if (std::strcmp(field.name, axis.name) == 0 && !read_integers(field, attributes.*axis.values)) {
        return std::string(axis.name) + " must be integers";
      }
    }
    if (std::strcmp(field.name, "scale") == 0 && field.length > 0) {
      if (field.type != PluginFieldType::kFLOAT32 || field.data == nullptr) return "scale must be a float32 number";
      attributes.scale = *static_cast<const float*>(field.data);
    }
    if (std::strcmp(field.name, "tactic") == 0) {
      std::vector<int32_t> value;
      if (!read_integers(field, value) || value.size() != 1) return "tactic must be one integer";
      attributes.tactic = value[0];
    }
  }
  return check_axes(attributes);
}

std::vector<PluginField> fields_of(const Attributes& attributes) {
  std::vector<PluginField> fields;
  for (const AxisField& axis : kAxisFields) {
    const std::vector<int32_t>& values = attributes.*axis.values;
    fields.emplace_back(axis.name, values.data(), PluginFieldType::kINT32, static_cast<int32_t>(values.size()));
  }
  fields.emplace_back("scale", &attributes.scale, PluginFieldType::kFLOAT32, 1);
  fields.emplace_back("tactic", &attributes.tactic, PluginFieldType::kINT32, 1);
  return fields;
}

std::string text_of(const Attributes& attributes) {
  std::string text;
  for (const AxisField& axis : kAxisFields) {
    text += axis.name;
    for (const int32_t value : attributes.*axis.values) text += " " + std::to_string(value);
    text += "; ";
  }
  char scale[32];
  std::snprintf(scale, sizeof scale, "scale %.9g", static_cast<double>(attributes.scale));
  return text + scale;
}

void refuse(Form form, const std::string& sentence) {
  std::fprintf(stderr, "na_deploy: %s: %s\n", name_of(form), sentence.c_str());
}

}  // namespace na_deploy::trt
