// Has libna_deploy_trt.so compute problems on a device as TensorRT would: a plugin for the builder, its tactics, a
// plugin from the serialised fields of each, two execution contexts of that on streams of their own, and a captured
// CUDA graph.
//
//   trt_enqueue LIBRARY FOLDER [LIBNVINFER]
//
// FOLDER holds cases.txt (read_cases) and the tensors that it names; NAME.TACTIC.WAY.BATCH.out and .lse are written
// there, and printed is a line "result NAME TACTIC WAY BATCH" for each, or "wrong NAME: sentence". LIBNVINFER is a
// TensorRT, also its lean runtime, whose registry loads the library and finds the creators; left out, the library is
// asked for them. Returns 0 if no case went wrong, 77 with one sentence where there is no CUDA device.
// benchmarks/tensorrt_enqueue.py writes the cases and holds the results to float64.
#include <cuda_runtime_api.h>
#include <dlfcn.h>

#include <algorithm>
#include <array>
#include <cstdio>
#include <cstdlib>
#include <deque>
#include <fstream>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "trt_device.h"
#include "trt_support.h"

namespace {

using namespace na_deploy::trt_tests;
using namespace nvinfer1;

constexpr int kNoDevice = 77;
struct Tensor {
  std::vector<int64_t> sizes;
  bool has_batch = true;  // the first size is the batch
  std::vector<char> content;

  std::vector<int64_t> with_batch(int64_t batch) const {
    std::vector<int64_t> own = sizes;
    if (has_batch) own[0] = batch;
    return own;
  }
};

struct Case {
  std::string name;
  std::string creator;
  DataType type = DataType::kFLOAT;
  std::array<std::vector<int32_t>, 4> attributes;  // kernel_size, dilation, stride, is_causal
  float scale = 0.0F;
  int32_t with_lse = 0;
  std::vector<int64_t> batches;  // the first is that of the tensors' content, the others are smaller
  std::vector<Tensor> inputs;
};

size_t bytes_of(const std::vector<int64_t>& sizes, DataType type) {
  size_t bytes = type == DataType::kFLOAT ? 4 : 2;
  for (const int64_t size : sizes) bytes *= static_cast<size_t>(size);
  return bytes;
}

template <typename T>
T next(std::istream& in) {
  T value{};
  expect(static_cast<bool>(in >> value), "cases.txt ends within a case or holds no number where one is due");
  return value;
}

template <typename T>
std::vector<T> next_list(std::istream& in) {
  std::vector<T> values(next<size_t>(in));
  for (T& value : values) value = next<T>(in);
  return values;
}

// Reads cases of words: name, operator, type (float, half, bf16), four attributes, scale, with_lse, batches, the number
// of inputs, and for each its file, 1 if its first size is the batch, and sizes. Lists begin with their length.
std::vector<Case> read_cases(const std::string& folder) {
  std::ifstream in(folder + "/cases.txt");
  expect(static_cast<bool>(in), folder + "/cases.txt cannot be read");
  std::vector<Case> cases;
  std::string name;
  while (in >> name) {
    Case one;
    one.name = name;
    one.creator = next<std::string>(in);
    const auto type = next<std::string>(in);
    one.type = type == "half" ? DataType::kHALF : type == "bf16" ? DataType::kBF16 : DataType::kFLOAT;
    for (auto& values : one.attributes) values = next_list<int32_t>(in);
    one.scale = next<float>(in);
    one.with_lse = next<int32_t>(in);
    one.batches = next_list<int64_t>(in);
    one.inputs.resize(next<size_t>(in));
    for (Tensor& input : one.inputs) {
      const std::string file = folder + "/" + next<std::string>(in);
      input.has_batch = next<int>(in) != 0;
      input.sizes = next_list<int64_t>(in);
      std::ifstream data(file, std::ios::binary);
      input.content.resize(bytes_of(input.sizes, one.type));
      data.read(input.content.data(), static_cast<std::streamsize>(input.content.size()));
      expect(static_cast<bool>(data), file + " is shorter than its tensor");
    }
    cases.push_back(std::move(one));
  }
  return cases;
}

// The creators of both operators, of the library or found by TensorRT's registry, to which the library was given.
class Creators {
 public:
  Creators(const char* library, const char* tensorrt) {
    if (tensorrt != nullptr) {
      void* const opened = dlopen(tensorrt, RTLD_NOW | RTLD_GLOBAL);
      expect(opened != nullptr, std::string("TensorRT does not open: ") + (opened == nullptr ? dlerror() : ""));
      const auto find = reinterpret_cast<IPluginRegistry* (*)()>(dlsym(opened, "getPluginRegistry"));
      expect(find != nullptr, "TensorRT has no registry");
      registry_ = find();
      expect(registry_->loadLibrary(library) != nullptr, "TensorRT's registry does not load the library");
      return;
    }
    void* const opened = dlopen(library, RTLD_NOW);
    expect(opened != nullptr, std::string("the library does not open: ") + (opened == nullptr ? dlerror() : ""));
    const auto find = reinterpret_cast<IPluginCreatorInterface* const* (*)(int32_t&)>(dlsym(opened, "getCreators"));
    expect(find != nullptr, "the library has no creators");
    int32_t count = 0;
    IPluginCreatorInterface* const* const all = find(count);
    for (int32_t i = 0; i < count; ++i) own_.push_back(static_cast<IPluginCreatorV3One*>(all[i]));
  }

  IPluginCreatorV3One& get(const std::string& name) const {
    if (registry_ != nullptr) {
      auto* const found = registry_->getCreator(name.c_str(), "1", "na_deploy");
      expect(found != nullptr, "TensorRT's registry does not know " + name);
      return *static_cast<IPluginCreatorV3One*>(found);
    }
    const auto found =
        std::find_if(own_.begin(), own_.end(), [&](IPluginCreatorV3One* own) { return own->getPluginName() == name; });
    expect(found != own_.end(), "the library has no creator of " + name);
    return **found;
  }

 private:
  IPluginRegistry* registry_ = nullptr;
  std::vector<IPluginCreatorV3One*> own_;
};

std::unique_ptr<IPluginV3> build_plugin(IPluginCreatorV3One& creator, const Case& given) {
  const auto& [kernel_size, dilation, stride, is_causal] = given.attributes;
  const PluginField fields[] = {ints("kernel_size", kernel_size),
                                ints("dilation", dilation),
                                ints("stride", stride),
                                ints("is_causal", is_causal),
                                {"scale", &given.scale, PluginFieldType::kFLOAT32, 1},
                                {"with_lse", &given.with_lse, PluginFieldType::kINT32, 1}};
  const PluginFieldCollection all{6, fields};
  std::unique_ptr<IPluginV3> plugin(creator.createPlugin(given.name.c_str(), &all, TensorRTPhase::kBUILD));
  expect(plugin != nullptr, "the creator refuses the attributes");
  return plugin;
}

// Returns the outputs as the plugin tells their shapes and types.
std::vector<Tensor> outputs_of(v_1_0::IPluginV3OneBuild& build, const Case& given) {
  std::deque<Dim> dims;
  std::vector<DimsExprs> in(given.inputs.size());
  for (const Tensor& input : given.inputs) {
    for (const int64_t size : input.sizes) dims.emplace_back(size);
  }
  size_t at = 0;
  for (size_t i = 0; i < in.size(); ++i) {
    in[i].nbDims = static_cast<int32_t>(given.inputs[i].sizes.size());
    for (int32_t a = 0; a < in[i].nbDims; ++a) in[i].d[a] = &dims[at++];
  }
  const int32_t count = build.getNbOutputs();
  expect(count == 1 + given.with_lse, "the plugin has another number of outputs");
  std::vector<DimsExprs> out(static_cast<size_t>(count));
  Builder builder;
  const auto inputs = static_cast<int32_t>(in.size());
  expect(build.getOutputShapes(in.data(), inputs, nullptr, 0, out.data(), count, builder) == 0,
         "the plugin tells no shapes");
  std::vector<DataType> types(out.size());
  const std::vector<DataType> input_types(in.size(), given.type);
  expect(build.getOutputDataTypes(types.data(), count, input_types.data(), inputs) == 0 && types[0] == given.type &&
             types.back() == (given.with_lse != 0 ? DataType::kFLOAT : given.type),
         "the plugin tells other types");
  std::vector<Tensor> found(out.size());
  for (size_t o = 0; o < out.size(); ++o) {
    for (int32_t a = 0; a < out[o].nbDims; ++a) {
      found[o].sizes.push_back(static_cast<const Dim*>(out[o].d[a])->value);
    }
  }
  return found;
}

// Offers the tensors with a free batch, as the builder does, and returns the tactics.
std::vector<int32_t> tactics_of(v_1_0::IPluginV3OneBuild& build, const Case& given,
                                const std::vector<Tensor>& outputs) {
  std::vector<DynamicPluginTensorDesc> all;
  const auto add = [&](const Tensor& own, DataType type) {
    DynamicPluginTensorDesc described = tensor(own.sizes, type);
    if (own.has_batch) {
      described.desc.dims.d[0] = -1;
      described.min.d[0] = given.batches.back();
    }
    all.push_back(described);
  };
  for (const Tensor& input : given.inputs) add(input, given.type);
  for (size_t o = 0; o < outputs.size(); ++o) add(outputs[o], o == 0 ? given.type : DataType::kFLOAT);
  const auto inputs = static_cast<int32_t>(given.inputs.size());
  const auto count = static_cast<int32_t>(outputs.size());
  for (int32_t p = 0; p < inputs + count; ++p) {
    expect(build.supportsFormatCombination(p, all.data(), inputs, count), "the plugin refuses the types");
  }
  expect(build.configurePlugin(all.data(), inputs, all.data() + inputs, count) == 0, "the plugin refuses the shapes");
  std::vector<int32_t> tactics(static_cast<size_t>(build.getNbTactics()));
  expect(build.getValidTactics(tactics.data(), static_cast<int32_t>(tactics.size())) == 0, "there are no tactics");
  return tactics;
}

// An execution context's node: a plugin attached to it, a stream, and the tensors of the largest batch.
class Context {
 public:
  Context(IPluginV3& engine, const Case& given, const std::vector<Tensor>& outputs)
      : given_(given), outputs_(outputs), stream_(new_stream()) {
    auto* runtime = capability<v_1_0::IPluginV3OneRuntime>(engine, PluginCapabilityType::kRUNTIME);
    plugin_.reset(runtime->attachToContext(nullptr));
    expect(plugin_ != nullptr, "the plugin does not attach to a context");
    runtime_ = capability<v_1_0::IPluginV3OneRuntime>(*plugin_, PluginCapabilityType::kRUNTIME);
    for (const Tensor& input : given.inputs) in_memory_.emplace_back(input.content.size());
    for (size_t o = 0; o < outputs.size(); ++o) out_memory_.emplace_back(bytes_of(outputs[o].sizes, type(o)));
  }

  void set_batch(int64_t batch) {
    batch_ = batch;
    in_.clear();
    out_.clear();
    for (const Tensor& input : given_.inputs) in_.push_back(tensor(input.with_batch(batch), given_.type).desc);
    for (size_t o = 0; o < outputs_.size(); ++o) {
      out_.push_back(tensor(outputs_[o].with_batch(batch), type(o)).desc);
    }
    expect(runtime_->onShapeChange(in_.data(), static_cast<int32_t>(in_.size()), out_.data(),
                                   static_cast<int32_t>(out_.size())) == 0,
           "the plugin refuses a batch of " + std::to_string(batch));
  }

  // Fills inputs and, with numbers that are none, outputs.
  void fill() const {
    for (size_t i = 0; i < in_memory_.size(); ++i) in_memory_[i].upload(given_.inputs[i].content, stream_.get());
    for (const DeviceTensor& output : out_memory_) output.clear(stream_.get());
  }

  // Launches with tensors that begin so many bytes later. Tensors without elements have no address, as in TensorRT.
  int32_t enqueue(size_t input_offset = 0, size_t output_offset = 0) const {
    std::vector<const void*> in;
    std::vector<void*> out;
    for (size_t i = 0; i < in_memory_.size(); ++i) {
      const bool is_empty = bytes_of(given_.inputs[i].with_batch(batch_), given_.type) == 0;
      in.push_back(is_empty ? nullptr : in_memory_[i].address() + (i == 0 ? input_offset : 0));
    }
    for (size_t o = 0; o < out_memory_.size(); ++o) {
      out.push_back(batch_ == 0 ? nullptr : out_memory_[o].address() + (o == 0 ? output_offset : 0));
    }
    return runtime_->enqueue(in_.data(), out_.data(), in.data(), out.data(), nullptr, stream_.get());
  }

  // Captures a launch over unknown numbers, then repeats it with the right ones.
  void run_graph() const {
    for (const DeviceTensor& input : in_memory_) input.clear(stream_.get());
    expect(cudaStreamBeginCapture(stream_.get(), cudaStreamCaptureModeThreadLocal), "cudaStreamBeginCapture");
    const int32_t answer = enqueue();
    cudaGraph_t captured = nullptr;
    expect(cudaStreamEndCapture(stream_.get(), &captured), "cudaStreamEndCapture");
    const Owned<CUgraph_st> graph(captured);
    expect(answer == 0, "a launch that is captured answers " + std::to_string(answer));
    cudaGraphExec_t made = nullptr;
    expect(cudaGraphInstantiate(&made, graph.get(), 0), "cudaGraphInstantiate");
    const Owned<CUgraphExec_st> executable(made);
    for (int repeat = 0; repeat < 2; ++repeat) {
      fill();
      expect(cudaGraphLaunch(executable.get(), stream_.get()), "cudaGraphLaunch");
    }
    expect(cudaStreamSynchronize(stream_.get()), "cudaStreamSynchronize");
  }

  // Writes the present batch's part of the outputs; the rest must be as fill() left it.
  void write(const std::string& path) const {
    const char* const endings[] = {".out", ".lse"};
    for (size_t o = 0; o < out_memory_.size(); ++o) {
      const std::vector<char> found = out_memory_[o].download(stream_.get());
      const size_t bytes = bytes_of(outputs_[o].with_batch(batch_), type(o));
      expect(std::all_of(found.begin() + static_cast<std::ptrdiff_t>(bytes), found.end(),
                         [](char byte) { return static_cast<unsigned char>(byte) == kUnwritten; }),
             "something was written behind the batch of " + std::to_string(batch_));
      std::ofstream(path + endings[o], std::ios::binary).write(found.data(), static_cast<std::streamsize>(bytes));
    }
  }

 private:
  DataType type(size_t output) const { return output == 0 ? given_.type : DataType::kFLOAT; }

  const Case& given_;
  const std::vector<Tensor>& outputs_;
  Owned<CUstream_st> stream_;
  std::unique_ptr<IPluginV3> plugin_;
  v_1_0::IPluginV3OneRuntime* runtime_ = nullptr;
  std::vector<DeviceTensor> in_memory_;
  std::vector<DeviceTensor> out_memory_;
  int64_t batch_ = 0;
  std::vector<PluginTensorDesc> in_;
  std::vector<PluginTensorDesc> out_;
};

void run_case(const Creators& creators, const Case& given, const std::string& folder) {
  IPluginCreatorV3One& creator = creators.get(given.creator);
  const std::unique_ptr<IPluginV3> plugin = build_plugin(creator, given);
  auto* build = capability<v_1_0::IPluginV3OneBuild>(*plugin, PluginCapabilityType::kBUILD);
  auto* built = capability<v_1_0::IPluginV3OneRuntime>(*plugin, PluginCapabilityType::kRUNTIME);
  const std::vector<Tensor> outputs = outputs_of(*build, given);
  for (const int32_t tactic : tactics_of(*build, given, outputs)) {
    expect(built->setTactic(tactic) == 0, "tactic " + std::to_string(tactic) + " is offered and not taken");
    const std::unique_ptr<IPluginV3> engine(
        creator.createPlugin(given.name.c_str(), built->getFieldsToSerialize(), TensorRTPhase::kRUNTIME));
    expect(engine != nullptr, "serialised fields make no plugin");
    Context first(*engine, given, outputs);
    Context second(*engine, given, outputs);
    for (const int64_t batch : given.batches) {
      const auto write = [&](const Context& context, const char* way) {
        const std::string rest = std::to_string(tactic) + "." + way + "." + std::to_string(batch);
        context.write(folder + "/" + given.name + "." + rest);
        std::printf("result %s %d %s %lld\n", given.name.c_str(), tactic, way, static_cast<long long>(batch));
      };
      for (Context* context : {&first, &second}) {
        context->set_batch(batch);
        context->fill();
        const int32_t answer = context->enqueue();
        expect(answer == 0, "tactic " + std::to_string(tactic) + " answers " + std::to_string(answer));
      }
      write(first, "first");
      write(second, "second");
      if (batch == 0) continue;
      first.run_graph();
      write(first, "graph");
    }
    // Addresses that kernels cannot read or write; CUDA must not be asked.
    first.set_batch(given.batches[0]);
    expect(first.enqueue(8, 0) == 1, "an input at 8 bytes is not refused");
    expect(first.enqueue(0, 8) == 1, "an output at 8 bytes is not refused");
    expect(cudaGetLastError(), "after refusals CUDA");
  }
}

}  // namespace

int main(int argc, char** argv) {
  if (argc < 3 || argc > 4) {
    std::printf("usage: trt_enqueue LIBRARY FOLDER [LIBNVINFER]\n");
    return 2;
  }
  int devices = 0;
  const cudaError_t error = cudaGetDeviceCount(&devices);
  if (error != cudaSuccess || devices == 0) {
    std::printf("There is no CUDA device to enqueue on: %s.\n",
                error != cudaSuccess ? cudaGetErrorString(error) : "the driver knows none");
    return kNoDevice;
  }
  int status = 0;
  try {
    const Creators creators(argv[1], argc > 3 ? argv[3] : nullptr);
    for (const Case& given : read_cases(argv[2])) {
      try {
        run_case(creators, given, argv[2]);
      } catch (const std::exception& wrong) {
        std::printf("wrong %s: %s\n", given.name.c_str(), wrong.what());
        status = 1;
      }
      std::fflush(stdout);
    }
  } catch (const std::exception& wrong) {
    std::printf("wrong: %s\n", wrong.what());
    status = 1;
  }
  std::fflush(stdout);
  if (argc > 3) std::_Exit(status);  // a TensorRT that could not start crashes at its end
  return status;
}
