/* Neighborhood attention inside OpenVINO: the C interface of libna_deploy_openvino, for operators written in Python or
 * against any release of OpenVINO. The library needs nothing of OpenVINO but the threading library that comes with it,
 * libtbb.so.12, which has to be in the process: import or load OpenVINO first.
 *
 * Functions that can fail return 0, or 1 with a sentence in `message` (`size` bytes with the terminating zero). */
#ifndef NA_DEPLOY_NA_OPENVINO_H_
#define NA_DEPLOY_NA_OPENVINO_H_

#include <stddef.h>
#include <stdint.h>

#if defined(__GNUC__)
#define NA_OPENVINO_API __attribute__((visibility("default")))
#else
#define NA_OPENVINO_API
#endif

#ifdef __cplusplus
extern "C" {
#endif

/* Version of this interface: callers compare it with the one they were written for. */
#define NA_OPENVINO_INTERFACE 2

#define NA_OPENVINO_INPUTS 6
#define NA_OPENVINO_SIZES 8

/* One node: its attributes and the plans that it keeps. Calls may come from several threads at once. */
typedef struct na_openvino_node na_openvino_node;

/* A list of a node's values for the spatial axes: one for all, or one per axis; none for the default. */
typedef struct na_openvino_list {
  const int64_t* values;
  size_t count;
} na_openvino_list;

typedef struct na_openvino_attributes {
  int32_t packed; /* 1: NeighborhoodAttentionQKV, 0: NeighborhoodAttention */
  float scale;    /* 0: head_dim ** -0.5 */
  na_openvino_list kernel_size, dilation, stride, is_causal;
} na_openvino_attributes;

/* The shape of one input: its first NA_OPENVINO_SIZES of `rank` sizes, -1 for those not known yet. */
typedef struct na_openvino_input {
  int32_t rank; /* -1: the node leaves it out */
  int64_t size[NA_OPENVINO_SIZES];
} na_openvino_input;

/* Shapes and types of a call, which may serve many calls. Inputs stand in the operator's order. */
typedef struct na_openvino_call {
  int32_t dtype;           /* na_dtype of every tensor but lse and, if bias_is_float32, the bias */
  int32_t bias_is_float32; /* 1: the bias is float32 whatever dtype is */
  int32_t constant_bias;   /* 1: the bias is a constant of the model, and stays in its memory */
  na_openvino_input inputs[NA_OPENVINO_INPUTS];
} na_openvino_call;

NA_OPENVINO_API int32_t na_openvino_interface(void);

/* The instruction set in use, such as "AVX3". */
NA_OPENVINO_API const char* na_openvino_target(void);

/* Versions of the oneTBB that the library was compiled with and of the one in this process, such as "2021.13". The
 * latter must not be the earlier one. */
NA_OPENVINO_API const char* na_openvino_compiled_tbb(void);
NA_OPENVINO_API const char* na_openvino_running_tbb(void);

/* Threads that a call from here would share: those of the calling thread's TBB arena. */
NA_OPENVINO_API int32_t na_openvino_concurrency(void);

/* Makes a node of checked attributes. */
NA_OPENVINO_API int na_openvino_make(const na_openvino_attributes* attributes, na_openvino_node** node, char* message,
                                     size_t size);

/* Releases a node, or nothing where it is null. */
NA_OPENVINO_API void na_openvino_release(na_openvino_node* node);

/* Writes the sizes of the output and their number, or without channels those of lse, for NA_OPENVINO_INPUTS inputs. */
NA_OPENVINO_API int na_openvino_output_sizes(const na_openvino_node* node, const na_openvino_input* inputs,
                                             int with_channels, int64_t* sizes, int32_t* rank, char* message,
                                             size_t size);

/* Computes one call on the calling thread's TBB arena. Inputs stand in the operator's order, null for those left out;
 * output is (B, *X, H, Dv), lse (B, *X, H) or null. Plain arguments, because callers in Python count microseconds. */
NA_OPENVINO_API int na_openvino_run(na_openvino_node* node, const na_openvino_call* call, const void* input0,
                                    const void* input1, const void* input2, const void* input3, const void* input4,
                                    const void* input5, void* output, float* lse, char* message, size_t size);

#ifdef __cplusplus
}
#endif

#endif /* NA_DEPLOY_NA_OPENVINO_H_ */
