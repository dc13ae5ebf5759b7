// Lets tests run the kernels of older instruction sets on a newer processor.
#include <hwy/targets.h>

#include <cstdint>

extern "C" {

// Returns the instruction sets that the kernels are compiled for and this processor has, as Highway's bits; the best is
// lowest.
__attribute__((visibility("default"))) int64_t na_test_targets() {
  hwy::DisableTargets(0);
  return hwy::SupportedTargets();
}

// Has the kernels of the best of these instruction sets run from now on. Not to be called while kernels run.
__attribute__((visibility("default"))) void na_test_use_targets(int64_t targets) {
  hwy::DisableTargets(~targets);
  hwy::GetChosenTarget().Update(hwy::SupportedTargets());
}

}  // extern "C"
