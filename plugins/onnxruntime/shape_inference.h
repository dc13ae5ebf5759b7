// Shapes of the outputs while ONNX Runtime loads a model; symbolic sizes keep their names.
#pragma once

#include "operator_kind.h"
#include "ort_api.h"

namespace na_deploy::ort {

// Sets the shapes of `output` and, where the node has it, `lse`. Shapes that cannot be inferred stay unknown: errors of
// a node are reported when its kernel is created or run, where ONNX Runtime passes the message on.
OrtStatusPtr infer_shapes(OperatorKind kind, OrtShapeInferContext* context) noexcept;

}  // namespace na_deploy::ort
