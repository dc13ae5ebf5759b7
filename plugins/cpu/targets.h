// Which instruction sets the kernels are compiled for. Included before foreach_target.h.
#pragma once

#include <hwy/detect_targets.h>

// Left out: sets that add nothing the kernels use, and those whose vectors have no size known to the compiler.
#undef HWY_DISABLED_TARGETS
#define HWY_DISABLED_TARGETS \
  (HWY_SSSE3 | HWY_AVX3_DL | HWY_AVX3_ZEN4 | HWY_AVX3_SPR | HWY_SVE | HWY_SVE2 | HWY_SVE_256 | HWY_SVE2_128 | HWY_RVV)
