// Instruction sets that the kernels are compiled for. Included before foreach_target.h.
#pragma once

#include <hwy/detect_targets.h>

// Excludes sets that add nothing the kernels use, and those whose vector size the compiler does not know. AVX3_ZEN4
// adds dot products of bfloat16; AVX3_SPR has them too and could not be run.
#undef HWY_DISABLED_TARGETS
#define HWY_DISABLED_TARGETS \
  (HWY_SSSE3 | HWY_AVX3_DL | HWY_AVX3_SPR | HWY_SVE | HWY_SVE2 | HWY_SVE_256 | HWY_SVE2_128 | HWY_RVV)
