// A model with our operators from C++: loads ONNX Runtime and the operator library, runs the model from several threads
// at once and prints the sum of its first output, which must be the same every time.
//
//     run_model libonnxruntime.so libna_deploy_ort.so model.onnx
//
// The model has one float input of known size; it is filled with (i % 13) / 13 - 0.5.
#define ORT_API_MANUAL_INIT
#include <onnxruntime_cxx_api.h>

#include <dlfcn.h>

#include <cmath>
#include <cstdio>
#include <memory>
#include <thread>
#include <vector>

namespace {

struct CloseLibrary {
  void operator()(void* library) const { dlclose(library); }
};

double sum_of_output(Ort::Session& session) {
  Ort::AllocatorWithDefaultOptions allocator;
  const auto input = session.GetInputNameAllocated(0, allocator);
  const auto output = session.GetOutputNameAllocated(0, allocator);
  const std::vector<int64_t> shape = session.GetInputTypeInfo(0).GetTensorTypeAndShapeInfo().GetShape();
  int64_t elements = 1;
  for (const int64_t size : shape) elements *= size;
  std::vector<float> numbers(static_cast<size_t>(elements));
  for (size_t i = 0; i < numbers.size(); ++i) numbers[i] = static_cast<float>(i % 13) / 13.0F - 0.5F;
  const auto memory = Ort::MemoryInfo::CreateCpu(OrtArenaAllocator, OrtMemTypeDefault);
  const Ort::Value tensor =
      Ort::Value::CreateTensor<float>(memory, numbers.data(), numbers.size(), shape.data(), shape.size());
  const char* inputs[] = {input.get()};
  const char* outputs[] = {output.get()};
  const auto results = session.Run(Ort::RunOptions{nullptr}, inputs, &tensor, 1, outputs, 1);
  const float* found = results[0].GetTensorData<float>();
  double sum = 0.0;
  for (size_t i = 0; i < results[0].GetTensorTypeAndShapeInfo().GetElementCount(); ++i) sum += std::abs(found[i]);
  return sum;
}

}  // namespace

int main(int count, char** arguments) {
  if (count != 4) {
    std::fputs("usage: run_model libonnxruntime.so libna_deploy_ort.so model.onnx\n", stderr);
    return 2;
  }
  const std::unique_ptr<void, CloseLibrary> runtime(dlopen(arguments[1], RTLD_NOW | RTLD_LOCAL));
  if (runtime == nullptr) {
    std::fprintf(stderr, "error: %s\n", dlerror());
    return 1;
  }
  using GetApiBase = const OrtApiBase* (*)();
  const auto get_api_base = reinterpret_cast<GetApiBase>(dlsym(runtime.get(), "OrtGetApiBase"));
  if (get_api_base == nullptr || get_api_base()->GetApi(ORT_API_VERSION) == nullptr) {
    std::fputs("error: this is no ONNX Runtime, or one older than the headers\n", stderr);
    return 1;
  }
  Ort::InitApi(get_api_base()->GetApi(ORT_API_VERSION));
  try {
    Ort::Env environment(ORT_LOGGING_LEVEL_WARNING, "run_model");
    Ort::SessionOptions options;
    options.RegisterCustomOpsLibrary(arguments[2]);
    Ort::Session session(environment, arguments[3], options);
    const double first = sum_of_output(session);
    double sums[4] = {};
    std::vector<std::thread> threads;
    for (double& sum : sums) threads.emplace_back([&] { sum = sum_of_output(session); });
    for (std::thread& thread : threads) thread.join();
    for (const double sum : sums) {
      if (sum != first) {
        std::fputs("error: threads got different results\n", stderr);
        return 1;
      }
    }
    std::printf("%.9g\n", first);
  } catch (const Ort::Exception& error) {
    std::fprintf(stderr, "error: %s\n", error.what());
    return 1;
  }
  return 0;
}
