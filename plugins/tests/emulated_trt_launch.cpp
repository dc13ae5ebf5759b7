// Launches of the TensorRT plugin on the emulated GPU, in a process that has the pretended CUDA runtime and its graphs.
#include <cstdint>
#include <functional>

#include "na_cuda.h"

extern "C" int32_t na_forward_emulated(const na_params* params, int32_t tactic);
extern "C" void na_test_device_memory(int32_t open);
bool na_test_capture(na_cuda_stream stream, const std::function<void()>& launch);

namespace {

int32_t launch(const na_params& params, int32_t tactic) {
  na_test_device_memory(1);
  const int32_t answer = na_forward_emulated(&params, tactic);
  na_test_device_memory(0);
  return answer;
}

}  // namespace

extern "C" int32_t na_launch(const na_params* params, int32_t tactic, na_cuda_stream stream) {
  const na_params kept = *params;
  if (na_test_capture(stream, [kept, tactic] { launch(kept, tactic); })) return 0;
  return launch(kept, tactic);
}

extern "C" const char* na_cuda_error(int32_t /*error*/) { return "an emulated error"; }
