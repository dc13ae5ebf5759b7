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

/* Writes the numbers of the ways to compute a problem into `tactics`, the one that is taken by default first, and
 * returns how many there are, at most `capacity`. They depend on sizes, types and the
 * present device, and on whether there are a bias and padding; nothing behind a pointer is read. */
NA_CUDA_API int32_t na_cuda_tactics(const na_params* params, int32_t* tactics, int32_t capacity);

/* Launches one kernel on `stream`. `tactic`: a number from na_cuda_tactics, or 0 for the default. Pointers are to
 * device memory, aligned to 16 bytes. Returns a cudaError_t, 0 for success. */
NA_CUDA_API int32_t na_forward(const na_params* params, int32_t tactic, na_cuda_stream stream);

/* Returns what the CUDA runtime calls the error that na_forward returned, in a few words. */
NA_CUDA_API const char* na_cuda_error(int32_t error);

/* Returns the compute capabilities that the kernels are compiled for, such as "8.0, 9.0". Needs no GPU. A library that
 * holds GPU kernels exports this function, so it also tells whether one does. */
NA_CUDA_API const char* na_cuda_capabilities(void);

#ifdef __cplusplus
}
#endif

#endif /* NA_DEPLOY_NA_CUDA_H_ */
