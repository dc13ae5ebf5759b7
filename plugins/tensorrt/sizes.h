// The sizes of one attention problem, read from a node's dimensions and checked against each other.
#pragma once

#include <NvInferRuntime.h>

#include <string>

#include "attributes.h"
#include "na_params.h"

namespace na_deploy::trt {

constexpr int32_t kMostInputs = 6;

bool takes_inputs(Form form, int32_t inputs);

// Where TensorRT puts the bias, or -1 if a node of so many inputs has none.
int32_t bias_input(Form form, int32_t inputs);

// Fills in sizes; pointers to tensors are null, but for those of inputs on which the choice of a kernel depends, which
// only say that they are there. Sizes that are not known yet are -1. Returns an empty string, or a sentence about what
// does not fit.
std::string read_sizes(Form form, const Attributes& attributes, const nvinfer1::Dims* const* dims,
                       nvinfer1::DataType type, int32_t inputs, na_params& params);

}  // namespace na_deploy::trt
