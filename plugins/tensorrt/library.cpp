// The functions of libna_deploy_trt.so that TensorRT calls, and the creators of both operators.
//
// A library is opened in three ways: by loadLibrary, which asks for getCreators; by Triton or LD_PRELOAD with plain
// dlopen, for which it registers its creators if TensorRT is already in the process; and before TensorRT, when only
// loadLibrary helps.
#include <NvInferRuntime.h>
#include <dlfcn.h>

#include <exception>
#include <new>
#include <string>

#include "attributes.h"
#include "plugin.h"

#define NA_EXPORT extern "C" __attribute__((visibility("default")))

namespace na_deploy::trt {
namespace {

class Creator final : public nvinfer1::IPluginCreatorV3One {
 public:
  explicit Creator(OperatorKind kind) : kind_(kind) {}

  nvinfer1::IPluginV3* createPlugin(const char* name, const nvinfer1::PluginFieldCollection* fields,
                                    nvinfer1::TensorRTPhase /*phase*/) noexcept override {
    try {
      Attributes attributes;
      const std::string wrong = read_attributes(kind_, fields, attributes);
      if (wrong.empty()) return new AttentionPlugin(attributes);
      say(kind_, (name == nullptr ? std::string() : std::string(name) + ": ") + wrong);
    } catch (const std::exception& error) {
      say(kind_, error.what());
    }
    return nullptr;
  }
  const nvinfer1::PluginFieldCollection* getFieldNames() noexcept override { return &field_names(); }
  const char* getPluginName() const noexcept override { return name_of(kind_); }
  const char* getPluginVersion() const noexcept override { return "1"; }
  const char* getPluginNamespace() const noexcept override { return "na_deploy"; }

 private:
  OperatorKind kind_;
};

Creator packed_creator{OperatorKind::kPacked};
Creator separate_creator{OperatorKind::kSeparate};
nvinfer1::IPluginCreatorInterface* const kCreators[] = {&packed_creator, &separate_creator};

// The TensorRT in the process, whether or not its names are visible to this library.
struct LoadedTensorRT {
  void* registry = nullptr;
  int32_t major = 0;
};

LoadedTensorRT loaded_tensorrt() {
  void* library = RTLD_DEFAULT;
  if (dlsym(library, "getPluginRegistry") == nullptr) {
    for (const char* name :
         {"libnvinfer.so.11", "libnvinfer.so.10", "libnvinfer_lean.so.11", "libnvinfer_lean.so.10"}) {
      library = dlopen(name, RTLD_NOLOAD | RTLD_LAZY);
      if (library != nullptr) break;
    }
    if (library == nullptr) return {};
  }
  const auto registry = reinterpret_cast<void* (*)()>(dlsym(library, "getPluginRegistry"));
  const auto version = reinterpret_cast<int32_t (*)()>(dlsym(library, "getInferLibVersion"));
  LoadedTensorRT found;
  if (registry != nullptr && version != nullptr) found = {registry(), version() / 10000};
  if (library != RTLD_DEFAULT) dlclose(library);  // lowers the count only: the library stays loaded
  return found;
}

int32_t register_with(nvinfer1::IPluginRegistry& registry) {
  int32_t known = 0;
  for (Creator* creator : {&packed_creator, &separate_creator}) {
    const bool there = registry.getCreator(creator->getPluginName(), "1", "na_deploy") != nullptr;
    if (there || registry.registerCreator(*creator, "na_deploy")) ++known;
  }
  return known;
}

}  // namespace
}  // namespace na_deploy::trt

// Returns the creators to loadLibrary, which registers them and fails on names that are registered already. The
// creators registered on opening are therefore removed first.
NA_EXPORT nvinfer1::IPluginCreatorInterface* const* getCreators(int32_t& count) {
  using namespace na_deploy::trt;
  const LoadedTensorRT found = loaded_tensorrt();
  if (found.registry != nullptr && found.major == NV_TENSORRT_MAJOR) {
    auto& registry = *static_cast<nvinfer1::IPluginRegistry*>(found.registry);
    for (Creator* creator : {&packed_creator, &separate_creator}) {
      if (registry.getCreator(creator->getPluginName(), "1", "na_deploy") == creator)
        registry.deregisterCreator(*creator);
    }
  }
  count = 2;
  return kCreators;
}

// Accepts the logger finder that TensorRT offers. It is unused: its interface differs between versions.
NA_EXPORT void setLoggerFinder(nvinfer1::ILoggerFinder* /*finder*/) {}

// Registers both creators with the TensorRT that is already in the process and keeps what is registered. Returns how
// many creators it then knows: 0 without TensorRT, or with a registry of another interface than that of these headers.
NA_EXPORT int32_t na_deploy_register() {
  const na_deploy::trt::LoadedTensorRT found = na_deploy::trt::loaded_tensorrt();
  if (found.registry == nullptr || found.major != NV_TENSORRT_MAJOR) return 0;
  return na_deploy::trt::register_with(*static_cast<nvinfer1::IPluginRegistry*>(found.registry));
}

// Registers the creators when the library is opened. This object stands after the creators, because static objects of
// one file are constructed in order.
[[maybe_unused]] static const int32_t registered_when_opened = na_deploy_register();
