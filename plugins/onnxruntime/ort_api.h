// ONNX Runtime's C++ header, set up for a library that gets its functions from ONNX Runtime, and errors as Status.
#pragma once

#ifndef ORT_API_MANUAL_INIT
#define ORT_API_MANUAL_INIT
#endif
#include <onnxruntime_cxx_api.h>

#include <exception>
#include <sstream>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

namespace na_deploy::ort {

// The oldest interface with everything used here (KernelContext_ParallelFor). The library runs from that release on.
constexpr uint32_t kOrtApi = 17;

// A problem of the given model or tensors, in one sentence. Any other exception is a defect or lack of memory.
struct InvalidModel : std::runtime_error {
  using std::runtime_error::runtime_error;
};

// Throws InvalidModel with the arguments written one after another.
template <typename... Parts>
[[noreturn]] void refuse(const Parts&... parts) {
  std::ostringstream text;
  (text << ... << parts);
  throw InvalidModel(text.str());
}

inline OrtStatusPtr make_status(OrtErrorCode code, const std::string& text) noexcept {
  return Ort::GetApi().CreateStatus(code, text.c_str());
}

// Runs the function and turns its exceptions into a Status, so that none reaches ONNX Runtime. Messages begin with
// `subject`.
template <typename Function>
OrtStatusPtr as_status(const char* subject, Function&& function) noexcept {
  try {
    try {
      std::forward<Function>(function)();
      return nullptr;
    } catch (const InvalidModel& error) {
      return make_status(ORT_INVALID_ARGUMENT, std::string(subject) + ": " + error.what());
    } catch (const std::exception& error) {
      return make_status(ORT_RUNTIME_EXCEPTION, std::string(subject) + ": " + error.what());
    }
  } catch (...) {
    return Ort::GetApi().CreateStatus(ORT_FAIL, "na_deploy: out of memory while reporting an error");
  }
}

}  // namespace na_deploy::ort
