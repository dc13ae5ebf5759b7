// A node's attributes as TensorRT's parser and serialised engines deliver them, and back.
#pragma once

#include <NvInferRuntime.h>

#include <cstdint>
#include <string>
#include <vector>

#include "na_params.h"
#include "operator_kind.h"

namespace na_deploy::trt {

struct Attributes {
  na_params params{};    // kind and attributes; type, sizes and tensors are null
  int64_t with_lse = 0;  // 1: the plugin has lse as its second output
  int64_t tactic = 0;    // tactic that an engine was built with; 0 for the default
};

// Names of the fields: the parser passes on no others.
const nvinfer1::PluginFieldCollection& field_names();

// Reads and checks fields. Returns an empty string, or a sentence about what is wrong with them.
std::string read_attributes(OperatorKind kind, const nvinfer1::PluginFieldCollection* fields, Attributes& attributes);

// Returns fields that point into `attributes`.
std::vector<nvinfer1::PluginField> fields_of(const Attributes& attributes);

// Returns a name that tells nodes and revisions of the kernels apart in a timing cache. TensorRT adds sizes and types.
std::string timing_cache_id(const Attributes& attributes);

// Writes a sentence to standard error: a plugin library for several TensorRT versions has no logger to call.
void say(OperatorKind kind, const std::string& sentence);

}  // namespace na_deploy::trt
