// A call as kernels take it, whichever processor they run on.
#pragma once

#include "api.h"
#include "na_params.h"
#include "node.h"
#include "problem.h"

namespace na_deploy::ort {

// The call's inputs, sizes and attributes; outputs are null.
na_params params_of(const Problem& problem, const Node& node);

// Asks ONNX Runtime for the outputs that the node has and sets them. They lie where the inputs do.
void make_outputs(OrtKernelContext* context, const Problem& problem, na_params& params);

}  // namespace na_deploy::ort
