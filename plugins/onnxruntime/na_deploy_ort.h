// The function of libna_deploy_ort that ONNX Runtime calls. ONNX Runtime finds it by its name:
// SessionOptions.register_custom_ops_library in Python, RegisterCustomOpsLibrary_V2 in C,
// the parameter op_library_filename of Triton's onnxruntime backend.
#pragma once

#include <onnxruntime_c_api.h>

#if defined(__GNUC__)
#define NA_DEPLOY_EXPORT __attribute__((visibility("default")))
#else
#define NA_DEPLOY_EXPORT
#endif

#ifdef __cplusplus
extern "C" {
#endif

// Adds both operators of the domain na_deploy, for float32, float16 and bfloat16, to the session options: on the CPU
// and, where the library is compiled with GPU kernels, in the CUDA execution provider, whether or not the session has
// that provider. Call it once per session options: ONNX Runtime refuses a domain that it already has.
NA_DEPLOY_EXPORT OrtStatus* ORT_API_CALL RegisterCustomOps(OrtSessionOptions* options, const OrtApiBase* base);

#ifdef __cplusplus
}
#endif
