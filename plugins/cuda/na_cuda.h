/* Neighborhood attention on NVIDIA GPUs, forward: the C interface. No allocation, no synchronisation: calls can be
 * captured into CUDA graphs. The operators are defined in docs/operator.md. */
#ifndef NA_DEPLOY_NA_CUDA_H_
#define NA_DEPLOY_NA_CUDA_H_

#include <stddef.h>
#include <stdint.h>

#include "na_params.h"

#define NA_CUDA_API __attribute__((visibility("default")))

#ifdef __cplusplus
extern "C" {
#endif

typedef struct CUstream_st* na_cuda_stream; /* cudaStream_t */

/* Returns 0 if the kernels can compute the problem; else 1, and a sentence in `message` (`size` bytes). */
NA_CUDA_API int na_cuda_check(const na_params* params, char* message, size_t size);

/* Writes the tactics that can compute a problem into `tactics`, the default first, and returns how many there are,
 * at most `capacity`. They depend on sizes, types and the present device, and on whether there are a bias and
 * padding; no memory that pointers refer to is read. */
NA_CUDA_API int32_t na_cuda_tactics(const na_params* params, int32_t* tactics, int32_t capacity);

/* Returns 1 if some problem can be computed by this tactic, 0 if no kernel has this number. */
NA_CUDA_API int32_t na_cuda_knows(int32_t tactic);

/* Returns 0 if tensors begin where kernels can read and write them: at multiples of 16 bytes, rel_pos_bias of an
 * element, lse of 4; else 1, and a sentence in `message`. */
NA_CUDA_API int na_cuda_check_addresses(const na_params* params, char* message, size_t size);

/* Launches one kernel on `stream`. `tactic`: a number that na_cuda_tactics gives for these parameters, or 0 for the
 * default. Pointers are to device memory and pass na_cuda_check_addresses. Returns a cudaError_t: 0 for success, 1
 * (cudaErrorInvalidValue) for a tactic that does not compute this problem. */
NA_CUDA_API int32_t na_forward(const na_params* params, int32_t tactic, na_cuda_stream stream);

/* Launches as na_forward does but without any search or check, for callers that keep the tactic of their last shape:
 * `tactic` is one that na_cuda_tactics gave for these sizes, and not 0. */
NA_CUDA_API int32_t na_launch(const na_params* params, int32_t tactic, na_cuda_stream stream);

/* Computes a tiny problem on a device, -1 for the present one, and waits for it. Returns a cudaError_t: 0 if driver and
 * device run these kernels. Makes a context on the device if there is none. */
NA_CUDA_API int32_t na_cuda_try(int32_t device);

/* Returns a revision of the kernels' sources, which every change to their code changes: timings of one revision do not
 * hold for another. */
NA_CUDA_API const char* na_cuda_revision(void);

/* Returns what the CUDA runtime calls the error that na_forward returned, in a few words. */
NA_CUDA_API const char* na_cuda_error(int32_t error);

/* Returns the compute capabilities that the kernels are compiled for, such as "8.0, 9.0". Needs no GPU. A library that
 * holds GPU kernels exports this function, so it also tells whether one does. */
NA_CUDA_API const char* na_cuda_capabilities(void);

#ifdef __cplusplus
}
#endif

#endif /* NA_DEPLOY_NA_CUDA_H_ */
