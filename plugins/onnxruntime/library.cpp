// The function that ONNX Runtime calls to register the library.
#include "na_deploy_ort.h"

#include "operators.h"

namespace {

// The domain, made once and never released: session options and sessions refer to it until the process ends.
OrtCustomOpDomain* operator_domain() {
  static OrtCustomOpDomain* const domain = [] {
    auto* made = new Ort::CustomOpDomain("na_deploy");
    na_deploy::ort::add_all_operators(*made);
    return static_cast<OrtCustomOpDomain*>(*made);
  }();
  return domain;
}

}  // namespace

OrtStatus* ORT_API_CALL RegisterCustomOps(OrtSessionOptions* options, const OrtApiBase* base) {
  const OrtApi* api = base->GetApi(na_deploy::ort::kOrtApi);
  if (api == nullptr) {
    // Every release has the first version of the interface, which can make a status.
    const std::string text = std::string("na_deploy's operators need ONNX Runtime 1.") +
                             std::to_string(na_deploy::ort::kOrtApi) + " or later, this is " + base->GetVersionString();
    return base->GetApi(1)->CreateStatus(ORT_NOT_IMPLEMENTED, text.c_str());
  }
  Ort::InitApi(api);
  return na_deploy::ort::as_status("na_deploy",
                                   [&] { Ort::ThrowOnError(api->AddCustomOpDomain(options, operator_domain())); });
}
