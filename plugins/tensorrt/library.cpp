// What TensorRT finds in libna_deploy_trt.so: the creators of both operators.
//
// A library is opened in three ways: by loadLibrary, which asks for getCreators; by Triton or LD_PRELOAD with plain
// dlopen, for which it registers itself if TensorRT is already in the process; and before TensorRT, when only
// loadLibrary helps.
#include <NvInferRuntime.h>
#include <dlfcn.h>

#include <exception>
#include <new>
#include <string>

#include "attributes.h"
#include "plugin.h"

#define NA_EXPORT extern "C" __attribute__((visibility("default")))

namespace na_deploy {
namespace {

class Creator final : public nvinfer1::IPluginCreatorV3One {
 public:
  explicit Creator(Form form) : form_(form) {}

  nvinfer1::IPluginV3* createPlugin(const char* name, const nvinfer1::PluginFieldCollection* fields,
                                    nvinfer1::TensorRTPhase /*phase*/) noexcept override {
    try {
      Attributes attributes;
      const std::string wrong = read_attributes(fields, attributes);
      if (wrong.empty()) return new AttentionPlugin(form_, attributes);
      refuse(form_, (name == nullptr ? std::string() : std::string(name) + ": ") + wrong);
    } catch (const std::exception& error) {
      refuse(form_, error.what());
    }
    return nullptr;
  }
  const nvinfer1::PluginFieldCollection* getFieldNames() noexcept override { return &field_names(); }
  const char* getPluginName() const noexcept override { return name_of(form_); }
  const char* getPluginVersion() const noexcept override { return "1"; }
  const char* getPluginNamespace() const noexcept override { return "na_deploy"; }

 private:
  Form form_;
};

Creator packed_creator{Form::kPacked};
Creator separate_creator{Form::kSeparate};
nvinfer1::IPluginCreatorInterface* const kCreators[] = {&packed_creator, &separate_creator};

using Registry = nvinfer1::IPluginRegistry* (*)();

// TensorRT's registry if a runtime is in the process, whether or not its names are visible to us.
nvinfer1::IPluginRegistry* loaded_registry() {
  void* symbol = dlsym(RTLD_DEFAULT, "getPluginRegistry");
  for (const char* name : {"libnvinfer.so.11", "libnvinfer.so.10", "libnvinfer_lean.so.11", "libnvinfer_lean.so.10"}) {
    if (symbol != nullptr) break;
    void* library = dlopen(name, RTLD_NOLOAD | RTLD_LAZY);
    if (library == nullptr) continue;
    symbol = dlsym(library, "getPluginRegistry");
    dlclose(library);  // only our count: it stays loaded
  }
  return symbol == nullptr ? nullptr : reinterpret_cast<Registry>(symbol)();
}

bool is_registered(nvinfer1::IPluginRegistry& registry, const Creator& creator) {
  return registry.getCreator(creator.getPluginName(), "1", "na_deploy") != nullptr;
}

}  // namespace
}  // namespace na_deploy

NA_EXPORT nvinfer1::IPluginCreatorInterface* const* getCreators(int32_t& count) {
  count = 2;
  return na_deploy::kCreators;
}

// TensorRT asks for it. The finder is not used: its interface differs between versions.
NA_EXPORT void setLoggerFinder(nvinfer1::ILoggerFinder* /*finder*/) {}

// Registers both creators with the TensorRT that is already in the process; returns how many it knows then. For whoever
// opens the library with dlopen; what is registered already stays.
NA_EXPORT int32_t na_deploy_register() {
  using namespace na_deploy;
  nvinfer1::IPluginRegistry* registry = loaded_registry();
  if (registry == nullptr) return 0;
  int32_t known = 0;
  for (Creator* creator : {&packed_creator, &separate_creator}) {
    if (is_registered(*registry, *creator) || registry->registerCreator(*creator, "na_deploy")) ++known;
  }
  return known;
}
