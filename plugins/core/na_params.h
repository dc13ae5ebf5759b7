/* One neighborhood attention problem, forward, as the kernels of every processor take it. The operators are defined
 * in docs/operator.md. Arithmetic is float32 for every tensor type. */
#ifndef NA_DEPLOY_NA_PARAMS_H_
#define NA_DEPLOY_NA_PARAMS_H_

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef enum na_dtype { NA_FLOAT32 = 0, NA_FLOAT16 = 1, NA_BFLOAT16 = 2 } na_dtype;

/* One problem. Tensors are dense and row-major. Only the first `rank` entries of per-axis arrays are used. */
typedef struct na_params {
  int32_t rank;   /* spatial axes, 1 to 3 */
  int32_t packed; /* 1: query is qkv (B, *X, 3, H, D), read in place; key and value are ignored */
  int32_t dtype;  /* na_dtype of every tensor but lse, and but rel_pos_bias where bias_is_float32 */

  int64_t batch;
  int64_t length[3];
  int64_t heads;
  int64_t key_heads; /* divides heads; equals it when packed */
  int64_t head_dim;
  int64_t value_dim;  /* equals head_dim when packed */
  int64_t additional; /* additional keys M, 0 for none */

  int64_t kernel_size[3];
  int64_t dilation[3];
  int64_t stride[3];
  int64_t is_causal[3]; /* 0 or 1 */
  float scale;          /* 0: head_dim ** -0.5 */

  const void* query;            /* (B, *X, H, D) or qkv */
  const void* key;              /* (B, *X, Hkv, D) */
  const void* value;            /* (B, *X, Hkv, Dv) */
  const void* rel_pos_bias;     /* (H, 2*K0-1, ...) or null */
  const void* additional_key;   /* (B, M, Hkv, D) or null */
  const void* additional_value; /* (B, M, Hkv, Dv) or null */
  const void* padding;          /* (3, H, D) or null: query, key and value of every position past the end of a map;
                                 * packed only. With it kernel_size * dilation may exceed length: windows are then laid
                                 * over a padded axis, whose first `length` positions attend */
  void* output;                 /* (B, *X, H, Dv) */
  float* lse;                   /* (B, *X, H), natural logarithm, or null */
  const float* prepared_bias;   /* output of na_cpu_prepare_bias for this rel_pos_bias and plan, or null */
  int32_t bias_is_float32;      /* 1: rel_pos_bias is float32 whatever dtype is; the CPU kernels alone */
} na_params;

/* Returns 0 if rank, kernel_size, dilation, stride and is_causal are within range, whatever the sizes are; else 1, and
 * a sentence in `message` (`size` bytes with the terminating zero). */
int na_check_attributes(const na_params* params, char* message, size_t size);

/* Returns 0 if sizes and attributes are within range and fit each other; else 1, and a sentence in `message` (`size`
 * bytes with the terminating zero). Ignores `output` and `lse`, and reads no memory that pointers refer to. */
int na_check(const na_params* params, char* message, size_t size);

#ifdef __cplusplus
}
#endif

#endif /* NA_DEPLOY_NA_PARAMS_H_ */
