// The GPU kernels' interface as ONNX Runtime's node for GPUs calls it, over the emulated GPU. Tests decide the stream
// and the answers of launches.
#include <cstdint>
#include <cstdlib>
#include <functional>

#include "ort_api.h"
#include "na_cuda.h"

extern "C" int32_t na_forward_emulated(const na_params* params, int32_t tactic);

// Opens or closes the memory of the pretended CUDA runtime to the emulated GPU, in processes that have that runtime.
extern "C" __attribute__((weak)) void na_test_device_memory(int32_t open);

// Keeps a launch if that runtime captures the stream.
__attribute__((weak)) bool na_test_capture(na_cuda_stream stream, const std::function<void()>& launch);

namespace {

// CUDA's answer to what a stream that is captured does not take; only launches that are captured get it.
constexpr int32_t kNotCaptured = 900;

// Conditions of the next calls, and arguments of the last launch.
void* given_stream = nullptr;
bool refuses_stream = false;
int32_t next_error = 0;
int32_t launches = 0;
void* last_stream = nullptr;
int32_t last_tactic = -1;
const void* last_bias = nullptr;

OrtStatusPtr ORT_API_CALL emulated_stream(const OrtKernelContext* /*context*/, void** stream) noexcept {
  if (refuses_stream) return Ort::GetApi().CreateStatus(ORT_FAIL, "there is no stream");
  *stream = given_stream;
  return nullptr;
}

int32_t launch(const na_params& params, int32_t tactic) {
  if (na_test_device_memory != nullptr) na_test_device_memory(1);
  const int32_t result = na_forward_emulated(&params, tactic);
  if (na_test_device_memory != nullptr) na_test_device_memory(0);
  return result;
}

}  // namespace

extern "C" int32_t na_launch(const na_params* params, int32_t tactic, na_cuda_stream stream) {
  ++launches;
  last_stream = stream;
  last_tactic = tactic;
  last_bias = params->rel_pos_bias;
  const na_params kept = *params;
  if (next_error == kNotCaptured) {
    if (na_test_capture != nullptr && na_test_capture(stream, [] {})) return next_error;
  } else if (next_error != 0) {
    return next_error;
  }
  if (na_test_capture != nullptr && na_test_capture(stream, [kept, tactic] { launch(kept, tactic); })) return 0;
  return launch(kept, tactic);
}

extern "C" const char* na_cuda_error(int32_t error) { return error == 209 ? "no kernel image" : "an emulated error"; }

// Answers with the error that the environment variable NA_TEST_TRY holds.
extern "C" NA_CUDA_API int32_t na_cuda_try(int32_t /*device*/) {
  const char* text = std::getenv("NA_TEST_TRY");
  return text == nullptr ? 0 : std::atoi(text);
}

extern "C" const char* na_cuda_capabilities() { return "8.0, 9.0"; }

// Has ONNX Runtime answer with this stream, or refuse, in calls after the loading of a session; on a CPU, ONNX Runtime
// itself has no stream.
extern "C" NA_CUDA_API void na_test_stream(void* stream, int32_t refuse) {
  static OrtApi replaced = Ort::GetApi();
  replaced.KernelContext_GetGPUComputeStream = emulated_stream;
  given_stream = stream;
  refuses_stream = refuse != 0;
  Ort::InitApi(&replaced);
}

extern "C" NA_CUDA_API void na_test_error(int32_t error) { next_error = error; }

extern "C" NA_CUDA_API int32_t na_test_launches(void) { return launches; }

extern "C" NA_CUDA_API void* na_test_last_stream(void) { return last_stream; }

extern "C" NA_CUDA_API int32_t na_test_last_tactic(void) { return last_tactic; }

extern "C" NA_CUDA_API int32_t na_test_last_had_bias(void) { return last_bias != nullptr ? 1 : 0; }
