// Exercises libna_deploy_trt.so as TensorRT's builder would, without TensorRT: creators, fields, shapes, types,
// formats, tactics, profiles, serialisation, clones, calls. Prints "ok" and returns 0, or prints a sentence and returns
// 1. On standard error, refusals follow the name of the part that they belong to.
#include <dlfcn.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <string>
#include <vector>

#include "trt_support.h"

namespace {

using namespace na_deploy::trt_tests;
using namespace nvinfer1;

void expect(bool condition, const char* what) {
  if (condition) return;
  std::printf("wrong: %s\n", what);
  std::exit(1);
}

}  // namespace

int main(int argc, char** argv) {
  expect(argc == 2, "give the library's path");
  void* library = dlopen(argv[1], RTLD_NOW);
  if (library == nullptr) std::printf("%s\n", dlerror());
  expect(library != nullptr, "the library does not open");
  expect(dlsym(library, "setLoggerFinder") != nullptr, "setLoggerFinder is missing");
  const auto creators = reinterpret_cast<IPluginCreatorInterface* const* (*)(int32_t&)>(dlsym(library, "getCreators"));
  expect(creators != nullptr, "getCreators is missing");
  int32_t count = 0;
  IPluginCreatorInterface* const* all = creators(count);
  expect(count == 2, "there are two creators");
  auto& packed = *static_cast<IPluginCreatorV3One*>(all[0]);
  auto& separate = *static_cast<IPluginCreatorV3One*>(all[1]);
  expect(std::string(packed.getPluginName()) == "NeighborhoodAttentionQKV", "the first is the packed operator");
  expect(std::string(separate.getPluginNamespace()) == "na_deploy", "the namespace is na_deploy");
  const PluginFieldCollection* names = packed.getFieldNames();
  expect(names->nbFields == 6, "six fields are asked for");

  // Fields as a parser delivers them, and refused ones.
  const std::vector<int32_t> kernel{7, 5};
  const std::vector<int32_t> dilation{2, 1};
  const std::vector<int32_t> wrong{7, 7, 7, 7};
  const std::vector<int64_t> wide{3, 3};
  const float scale = 0.25F;
  const int32_t with_lse = 1;
  std::vector<PluginField> fields{ints("kernel_size", kernel),
                                  ints("dilation", dilation),
                                  {"scale", &scale, PluginFieldType::kFLOAT32, 1},
                                  {"with_lse", &with_lse, PluginFieldType::kINT32, 1}};
  PluginFieldCollection given{static_cast<int32_t>(fields.size()), fields.data()};
  const std::unique_ptr<IPluginV3> plugin(packed.createPlugin("attention", &given, TensorRTPhase::kBUILD));
  expect(plugin != nullptr, "a node's fields make a plugin");
  fields[0] = ints("kernel_size", wrong);
  expect(packed.createPlugin("attention", &given, TensorRTPhase::kBUILD) == nullptr, "four axes are refused");
  fields[0] = {"kernel_size", wide.data(), PluginFieldType::kINT64, 2};
  std::unique_ptr<IPluginV3> other(separate.createPlugin("attention", &given, TensorRTPhase::kBUILD));
  expect(other != nullptr, "64-bit fields are read as well");
  PluginFieldCollection none{0, nullptr};
  expect(separate.createPlugin("attention", &none, TensorRTPhase::kBUILD) == nullptr, "kernel_size is required");

  // Outputs: one, or two where the node asks for lse.
  const auto outputs = [](IPluginV3& of) {
    return capability<v_1_0::IPluginV3OneBuild>(of, PluginCapabilityType::kBUILD)->getNbOutputs();
  };
  expect(outputs(*plugin) == 2, "lse is the second output");
  given.nbFields = 3;
  const std::unique_ptr<IPluginV3> without_lse(packed.createPlugin("attention", &given, TensorRTPhase::kBUILD));
  expect(outputs(*without_lse) == 1, "without with_lse there is one output");
  given.nbFields = 4;

  // Tactics that the library does not have.
  const int32_t unknown = 77;
  fields.push_back({"tactic", &unknown, PluginFieldType::kINT32, 1});
  given = {static_cast<int32_t>(fields.size()), fields.data()};
  expect(packed.createPlugin("attention", &given, TensorRTPhase::kRUNTIME) == nullptr, "unknown tactics are refused");

  auto* build = capability<v_1_0::IPluginV3OneBuild>(*plugin, PluginCapabilityType::kBUILD);
  auto* runtime = capability<v_1_0::IPluginV3OneRuntime>(*plugin, PluginCapabilityType::kRUNTIME);
  auto* core = capability<v_1_0::IPluginV3OneCore>(*plugin, PluginCapabilityType::kCORE);
  expect(build != nullptr && runtime != nullptr && core != nullptr, "all three capabilities are there");

  // Shapes: (B, X, Y, 3, H, D) to (B, X, Y, H, D) and (B, X, Y, H).
  Dim dims[] = {Dim(2), Dim(28), Dim(14), Dim(3), Dim(4), Dim(32)};
  DimsExprs in{};
  in.nbDims = 6;
  for (int i = 0; i < 6; ++i) in.d[i] = &dims[i];
  DimsExprs out[2]{};
  Builder builder;
  expect(build->getOutputShapes(&in, 1, nullptr, 0, out, 2, builder) == 0, "shapes are told");
  expect(out[0].nbDims == 5 && out[0].d[1] == in.d[1] && out[0].d[3] == in.d[4] && out[0].d[4] == in.d[5],
         "the output loses the axis of three");
  expect(out[1].nbDims == 4 && out[1].d[3] == in.d[4], "lse has no channels");
  in.nbDims = 5;
  expect(build->getOutputShapes(&in, 1, nullptr, 0, out, 2, builder) != 0, "another rank is refused");

  DataType types[2];
  const DataType half = DataType::kHALF;
  expect(build->getOutputDataTypes(types, 2, &half, 1) == 0 && types[0] == half && types[1] == DataType::kFLOAT,
         "the output has the input's type, lse is float32");

  // Formats: position by position, linear, one type for all but lse.
  DynamicPluginTensorDesc tensors[4] = {tensor({2, 28, 14, 3, 4, 32}, half), tensor({4, 13, 9}, half),
                                        tensor({2, 28, 14, 4, 32}, half), tensor({2, 28, 14, 4}, DataType::kFLOAT)};
  for (int32_t p = 0; p < 4; ++p) expect(build->supportsFormatCombination(p, tensors, 2, 2), "half is taken");
  tensors[3].desc.type = half;
  expect(!build->supportsFormatCombination(3, tensors, 2, 2), "lse is float32 only");
  tensors[1].desc.type = DataType::kFLOAT;
  expect(!build->supportsFormatCombination(1, tensors, 2, 2), "a bias of another type is not taken");
  tensors[0].desc.type = DataType::kINT8;
  expect(!build->supportsFormatCombination(0, tensors, 2, 2), "int8 is not taken");
  tensors[0] = tensor({2, 28, 14, 3, 4, 32}, half);
  tensors[0].desc.format = TensorFormat::kCHW32;
  expect(!build->supportsFormatCombination(0, tensors, 2, 2), "only linear tensors are taken");

  // Tactics: one-pass and tile kernels for half, tiles for float32; nothing for a map smaller than the window.
  tensors[0] = tensor({2, 28, 14, 3, 4, 32}, half);
  expect(build->configurePlugin(tensors, 2, tensors + 2, 2) == 0, "it is configured");
  std::vector<int32_t> tactics(static_cast<size_t>(build->getNbTactics()));
  expect(tactics.size() == 9, "three one-pass kernels, five shapes of tiles and the plain kernel");
  expect(build->getValidTactics(tactics.data(), 9) == 0 && tactics[8] == 1, "the plain kernel comes last");
  expect(std::count_if(tactics.begin(), tactics.end(), [](int32_t tactic) { return tactic >= 30; }) == 3,
         "three tactics are of one pass");
  tensors[0] = tensor({2, 28, 14, 3, 4, 32}, DataType::kFLOAT);
  expect(build->configurePlugin(tensors, 2, tensors + 2, 2) == 0 && build->getNbTactics() == 4, "float32 too");
  tensors[0] = tensor({2, 6, 14, 3, 4, 32}, half);
  expect(build->configurePlugin(tensors, 2, tensors + 2, 2) != 0, "a window larger than the map is refused");
  tensors[0] = tensor({-1, 28, 14, 3, 4, 32}, half);
  tensors[0].min.d[0] = 1;
  tensors[0].opt.d[0] = tensors[0].max.d[0] = 8;
  expect(build->configurePlugin(tensors, 2, tensors + 2, 2) == 0, "a free batch is taken");

  expect(build->getNbTactics() == 9, "with the tactics of all its sizes");

  // Each shape of a profile must have kernels.
  const auto with_map = [&](int64_t smallest, int64_t usual, int64_t largest) {
    tensors[0] = tensor({2, -1, 14, 3, 4, 32}, half);
    tensors[0].min.d[1] = smallest;
    tensors[0].opt.d[1] = usual;
    tensors[0].max.d[1] = largest;
    return build->configurePlugin(tensors, 2, tensors + 2, 2) == 0;
  };
  expect(with_map(14, 28, 56), "maps from 14 to 56 are taken");
  std::fprintf(stderr, "smallest:\n");
  expect(!with_map(13, 28, 56), "a smallest map smaller than the window is refused");
  std::fprintf(stderr, "usual:\n");
  expect(!with_map(14, 9, 56), "a usual one too");
  std::fprintf(stderr, "largest:\n");
  expect(!with_map(14, 28, int64_t{1} << 40), "a largest one with more positions than a GPU takes too");
  tensors[0] = tensor({2, 28, 14, 3, 4, 32}, half);

  // Padding: a third input, with which a window may be larger than the map.
  DynamicPluginTensorDesc padded[5] = {tensor({2, 6, 14, 3, 4, 32}, half), tensor({4, 13, 9}, half),
                                       tensor({3, 4, 32}, half), tensor({2, 6, 14, 4, 32}, half),
                                       tensor({2, 6, 14, 4}, DataType::kFLOAT)};
  for (int32_t p = 0; p < 5; ++p) expect(build->supportsFormatCombination(p, padded, 3, 2), "padding is taken");
  DimsExprs three[3]{};
  three[0].nbDims = 6;
  for (int i = 0; i < 6; ++i) three[0].d[i] = &dims[i];
  expect(build->getOutputShapes(three, 3, nullptr, 0, out, 2, builder) == 0 && out[0].d[1] == three[0].d[1],
         "the output is as large as the map");
  expect(build->configurePlugin(padded, 3, padded + 3, 2) == 0, "windows may reach behind the map");
  expect(build->getNbTactics() == 9, "tiles and one pass follow them too");
  padded[0] = tensor({2, 28, 14, 3, 4, 32}, half);
  expect(build->configurePlugin(padded, 3, padded + 3, 2) == 0 && build->getNbTactics() == 9, "large maps too");
  PluginTensorDesc then[5];
  for (int i = 0; i < 5; ++i) then[i] = padded[i].desc;
  expect(runtime->onShapeChange(then, 3, then + 3, 2) == 0, "a large map is taken at run time");
  then[0].dims.d[2] = 1;
  expect(runtime->onShapeChange(then, 3, then + 3, 2) == 0, "and so is a small one");
  expect(runtime->onShapeChange(then, 2, then + 3, 2) != 0, "which is refused without padding");
  then[2].dims.d[1] = 2;
  expect(runtime->onShapeChange(then, 3, then + 3, 2) != 0, "padding of other heads is refused");
  then[2].dims.d[1] = 4;
  then[1].dims.d[2] = 8;
  expect(runtime->onShapeChange(then, 3, then + 3, 2) != 0, "a bias of another kernel_size is refused");

  // Separate tensors must fit each other.
  auto* runs_apart = capability<v_1_0::IPluginV3OneRuntime>(*other, PluginCapabilityType::kRUNTIME);
  const auto fits = [&](int input, int axis, int64_t size) {
    PluginTensorDesc six[8] = {tensor({2, 28, 14, 4, 32}, half).desc, tensor({2, 28, 14, 2, 32}, half).desc,
                               tensor({2, 28, 14, 2, 16}, half).desc, tensor({4, 5, 5}, half).desc,
                               tensor({2, 6, 2, 32}, half).desc,      tensor({2, 6, 2, 16}, half).desc};
    six[input].dims.d[axis] = size;
    return runs_apart->onShapeChange(six, 6, six + 6, 2) == 0;
  };
  expect(fits(0, 0, 2), "six tensors are taken");
  expect(!fits(1, 1, 27), "keys of another map are refused");
  expect(!fits(1, 4, 16), "keys of other channels are refused");
  expect(!fits(2, 3, 4), "values of other heads are refused");
  expect(!fits(3, 0, 2), "biases of other heads are refused");
  expect(!fits(4, 3, 16), "additional keys of other channels are refused");
  expect(!fits(5, 1, 7), "additional values in another number are refused");
  expect(!fits(1, 3, 3), "heads that do not divide are refused");
  auto* apart = capability<v_1_0::IPluginV3OneBuild>(*other, PluginCapabilityType::kBUILD);
  expect(!apart->supportsFormatCombination(0, padded, 2, 2), "two inputs are too few for the other operator");
  expect(build->configurePlugin(tensors, 2, tensors + 2, 2) == 0, "it is configured as before");

  // Serialisation: written fields make the same plugin, the tactic with it; a clone does too.
  expect(runtime->setTactic(77) != 0, "an unknown tactic is not set");
  expect(runtime->setTactic(tactics[1]) == 0, "a tactic is set");
  const PluginFieldCollection* written = runtime->getFieldsToSerialize();
  const std::unique_ptr<IPluginV3> again(packed.createPlugin("attention", written, TensorRTPhase::kRUNTIME));
  expect(again != nullptr, "serialised fields make a plugin");
  const auto same = [](IPluginV3& a, IPluginV3& b) {
    const PluginFieldCollection* x =
        capability<v_1_0::IPluginV3OneRuntime>(a, PluginCapabilityType::kRUNTIME)->getFieldsToSerialize();
    const PluginFieldCollection* y =
        capability<v_1_0::IPluginV3OneRuntime>(b, PluginCapabilityType::kRUNTIME)->getFieldsToSerialize();
    bool equal = x->nbFields == y->nbFields;
    for (int32_t i = 0; equal && i < x->nbFields; ++i) {
      const PluginField& p = x->fields[i];
      const PluginField& q = y->fields[i];
      equal =
          std::strcmp(p.name, q.name) == 0 && p.type == q.type && p.length == q.length &&
          std::memcmp(p.data, q.data, static_cast<size_t>(p.length) * (p.type == PluginFieldType::kINT64 ? 8 : 4)) == 0;
    }
    return equal;
  };
  expect(same(*plugin, *again), "a round trip changes nothing");
  const std::unique_ptr<IPluginV3> copy(plugin->clone());
  expect(same(*plugin, *copy), "a clone is the same");
  auto* copied = capability<v_1_0::IPluginV3OneBuild>(*copy, PluginCapabilityType::kBUILD);
  const std::string id = build->getTimingCacheID();
  expect(id == copied->getTimingCacheID() && id.find("kernels a test; kernel_size 7 5;") == 0,
         "the cache is keyed by the kernels' revision and by attributes");

  // Shapes at run time.
  PluginTensorDesc now[4];
  for (int i = 0; i < 4; ++i) now[i] = tensors[i].desc;
  now[0] = tensor({3, 28, 14, 3, 4, 32}, half).desc;
  expect(runtime->onShapeChange(now, 2, now + 2, 2) == 0, "new shapes are taken");
  now[0].dims.d[1] = 3;
  expect(runtime->onShapeChange(now, 2, now + 2, 2) != 0, "shapes that do not fit are refused");

  // A call: addresses are checked, and what CUDA answers is told, once.
  now[0] = tensor({3, 28, 14, 3, 4, 32}, half).desc;
  expect(runtime->onShapeChange(now, 2, now + 2, 2) == 0, "shapes are taken again");
  alignas(16) static unsigned char memory[64];
  const void* in_tensors[] = {memory + 8, memory};
  void* out_tensors[] = {memory, memory + 4};
  std::fprintf(stderr, "enqueue:\n");
  const auto call = [&] { return runtime->enqueue(now, now + 2, in_tensors, out_tensors, nullptr, nullptr); };
  expect(call() == 1, "an input at 8 bytes is refused");
  in_tensors[0] = memory;
  in_tensors[1] = memory + 2;
  expect(call() == 100 && call() == 100, "a bias at an element and lse at 4 bytes are launched");
  std::printf("ok\n");
  return 0;
}
