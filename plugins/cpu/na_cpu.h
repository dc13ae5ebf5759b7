/* Neighborhood attention on the CPU, forward: the C interface. No allocation, no threads, no framework.
 *
 * A caller checks its parameters, plans once, and runs ranges of tasks on any threads in any order:
 *
 *     na_cpu_plan plan;
 *     if (na_cpu_check(&params, message, sizeof message) != 0) ...
 *     na_cpu_make_plan(&params, &plan);
 *     na_cpu_run(&params, &plan, 0, plan.tasks, scratch);     // plan.scratch_bytes of scratch for each thread
 *
 * The operators are defined in docs/operator.md. Arithmetic is float32 whatever the tensors hold. */
#ifndef NA_DEPLOY_NA_CPU_H_
#define NA_DEPLOY_NA_CPU_H_

#include <stddef.h>
#include <stdint.h>

#include "na_params.h"

#if defined(_WIN32)
#define NA_CPU_API
#else
#define NA_CPU_API __attribute__((visibility("default")))
#endif

#ifdef __cplusplus
extern "C" {
#endif

/* The plan of a problem, cut into tasks. It depends on sizes, attributes and the instruction set, not on the
 * tensors. */
typedef struct na_cpu_plan {
  int64_t tasks;                 /* independent pieces of work; 0 for an empty batch */
  int64_t tile[3];               /* queries of one task along each axis, leading axes 1 */
  int64_t quad[3];               /* queries that the kernel of small windows takes at once; 0 for the general one */
  size_t scratch_bytes;          /* memory that each running thread needs, aligned to 64 bytes */
  size_t prepared_bias_elements; /* floats that na_cpu_prepare_bias writes; 0 where preparing brings nothing */
} na_cpu_plan;

/* Checks as na_check does, and refuses padding, which these kernels do not take. */
NA_CPU_API int na_cpu_check(const na_params* params, char* message, size_t size);

/* Plans checked parameters. */
NA_CPU_API void na_cpu_make_plan(const na_params* params, na_cpu_plan* plan);

/* Spreads rel_pos_bias for the plan's tiles into `prepared`, aligned to 64 bytes. Worth keeping where the bias is a
 * constant; without it na_cpu_run does the same per call and head where that pays. */
NA_CPU_API void na_cpu_prepare_bias(const na_params* params, const na_cpu_plan* plan, float* prepared);

/* Computes the tasks [first, last). Calls for disjoint ranges may run at once, each with its own scratch. */
NA_CPU_API void na_cpu_run(const na_params* params, const na_cpu_plan* plan, int64_t first, int64_t last,
                           void* scratch);

/* The instruction set in use, such as "AVX3". */
NA_CPU_API const char* na_cpu_target(void);

/* Writes the window [start[i], end[i]) of every position of one axis, counted in its dilation group. */
NA_CPU_API void na_cpu_window_bounds(int64_t length, int64_t kernel_size, int64_t dilation, int64_t stride,
                                     int32_t is_causal, int64_t* start, int64_t* end);

#ifdef __cplusplus
}
#endif

#endif /* NA_DEPLOY_NA_CPU_H_ */
