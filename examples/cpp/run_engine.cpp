// An engine of TensorRT 10 or 11 from C++: loads our plugin library and the engine, runs it, and prints the sum of the
// magnitudes of its first output.
//
//     run_engine model.engine [libna_deploy_trt.so]
//
// model.engine is a member of a bundle written by `na-deploy build --backend tensorrt`; verify the bundle's hashes
// before trusting one (na_deploy.load does). The engine has one float32 input; sizes it leaves free take the profile's
// usual ones. The input is filled with (i % 13) / 13 - 0.5.
//
//     c++ -std=c++17 run_engine.cpp -I$TENSORRT_ROOT/include -I$CUDA_HOME/include -L$TENSORRT_ROOT/lib
//         -L$CUDA_HOME/lib64 -lnvinfer -lcudart -o run_engine
#include <NvInferRuntime.h>
#include <cuda_runtime_api.h>

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <exception>
#include <fstream>
#include <iterator>
#include <map>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

namespace {

class Logger final : public nvinfer1::ILogger {
 public:
  void log(Severity severity, const char* message) noexcept override {
    if (severity <= Severity::kWARNING) std::fprintf(stderr, "TensorRT: %s\n", message);
  }
};

void check(cudaError_t status, const char* doing) {
  if (status != cudaSuccess) throw std::runtime_error(std::string(doing) + ": " + cudaGetErrorString(status));
}

void require(bool condition, const std::string& sentence) {
  if (!condition) throw std::runtime_error(sentence);
}

struct FreeDevice {
  void operator()(void* memory) const { cudaFree(memory); }
};
using DeviceMemory = std::unique_ptr<void, FreeDevice>;

struct DestroyStream {
  void operator()(CUstream_st* stream) const { cudaStreamDestroy(stream); }
};
using Stream = std::unique_ptr<CUstream_st, DestroyStream>;

DeviceMemory allocate(size_t bytes) {
  void* memory = nullptr;
  check(cudaMalloc(&memory, bytes), "cannot allocate GPU memory");
  return DeviceMemory(memory);
}

std::vector<char> read(const char* path) {
  std::ifstream file(path, std::ios::binary);
  require(file.good(), std::string("cannot read ") + path);
  return {std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
}

size_t elements(const nvinfer1::Dims& shape) {
  size_t count = 1;
  for (int32_t axis = 0; axis < shape.nbDims; ++axis) {
    require(shape.d[axis] >= 0, "a size depends on the numbers; this program does not run such engines");
    count *= static_cast<size_t>(shape.d[axis]);
  }
  return count;
}

double run(const char* engine_path, const char* library_path) {
  Logger logger;
  const std::unique_ptr<nvinfer1::IRuntime> runtime(nvinfer1::createInferRuntime(logger));
  require(runtime != nullptr, "TensorRT does not start; is there an NVIDIA GPU with its driver?");
  // The library has to be there before the engine is read: its plugins deserialise their own layers.
  if (library_path != nullptr) {
    require(runtime->getPluginRegistry().loadLibrary(library_path) != nullptr,
            std::string("TensorRT refuses the plugin library ") + library_path);
  }
  const std::vector<char> plan = read(engine_path);
  const std::unique_ptr<nvinfer1::ICudaEngine> engine(runtime->deserializeCudaEngine(plan.data(), plan.size()));
  require(engine != nullptr, std::string("TensorRT refuses the engine ") + engine_path);
  const std::unique_ptr<nvinfer1::IExecutionContext> context(engine->createExecutionContext());
  require(context != nullptr, "the engine gives no execution context");

  cudaStream_t created = nullptr;
  check(cudaStreamCreateWithFlags(&created, cudaStreamNonBlocking), "cannot create a stream");
  const Stream stream(created);

  std::map<std::string, DeviceMemory> memory;
  std::string output;
  for (int32_t index = 0; index < engine->getNbIOTensors(); ++index) {
    const char* name = engine->getIOTensorName(index);
    require(engine->getTensorDataType(name) == nvinfer1::DataType::kFLOAT, std::string(name) + " is not float32");
    if (engine->getTensorIOMode(name) == nvinfer1::TensorIOMode::kOUTPUT) {
      if (output.empty()) output = name;
      continue;
    }
    const nvinfer1::Dims shape = engine->getProfileShape(name, 0, nvinfer1::OptProfileSelector::kOPT);
    require(context->setInputShape(name, shape), std::string(name) + " does not take the profile's usual sizes");
    std::vector<float> numbers(elements(shape));
    for (size_t i = 0; i < numbers.size(); ++i) numbers[i] = static_cast<float>(i % 13) / 13.0F - 0.5F;
    memory[name] = allocate(numbers.size() * sizeof(float));
    // Not page-locked, so the copy is over when the call returns.
    check(cudaMemcpy(memory[name].get(), numbers.data(), numbers.size() * sizeof(float), cudaMemcpyHostToDevice),
          "cannot copy to the GPU");
  }
  require(!output.empty(), "the engine has no output");
  for (int32_t index = 0; index < engine->getNbIOTensors(); ++index) {
    const char* name = engine->getIOTensorName(index);
    if (engine->getTensorIOMode(name) == nvinfer1::TensorIOMode::kOUTPUT) {
      memory[name] = allocate(elements(context->getTensorShape(name)) * sizeof(float));
    }
    require(context->setTensorAddress(name, memory[name].get()), std::string("no memory for ") + name);
  }
  require(context->enqueueV3(stream.get()), "the engine does not run");
  std::vector<float> found(elements(context->getTensorShape(output.c_str())));
  check(cudaMemcpyAsync(found.data(), memory[output].get(), found.size() * sizeof(float), cudaMemcpyDeviceToHost,
                        stream.get()),
        "cannot copy from the GPU");
  check(cudaStreamSynchronize(stream.get()), "the engine failed");
  double sum = 0.0;
  for (const float number : found) sum += std::abs(number);
  return sum;
}

}  // namespace

int main(int count, char** arguments) {
  if (count != 2 && count != 3) {
    std::fputs("usage: run_engine model.engine [libna_deploy_trt.so]\n", stderr);
    return 2;
  }
  try {
    std::printf("%.6f\n", run(arguments[1], count == 3 ? arguments[2] : nullptr));
  } catch (const std::exception& error) {
    std::fprintf(stderr, "error: %s\n", error.what());
    return 1;
  }
  return 0;
}
