// What every processor's kernel knows of its node, and how such a kernel comes into being.
#pragma once

#include <string>

#include "api.h"
#include "attributes.h"
#include "form.h"

namespace na_deploy::ort {

struct Node {
  Form form;
  ONNXTensorElementDataType type;
  Attributes attributes;
  std::string subject;  // "NeighborhoodAttentionQKV node 'levels.0.blocks.0.attn'"
};

// Makes a Kernel(Node, info), which ONNX Runtime owns from then on.
template <typename Kernel>
OrtStatusPtr create_kernel(Form form, ONNXTensorElementDataType type, const OrtKernelInfo* info,
                           void** kernel) noexcept {
  std::string subject = name_of(form);
  *kernel = nullptr;
  OrtStatusPtr failure = as_status(name_of(form), [&] {
    const std::string name = Ort::ConstKernelInfo(info).GetNodeName();
    if (!name.empty()) subject += " node '" + name + "'";
  });
  if (failure != nullptr) return failure;
  return as_status(subject.c_str(),
                   [&] { *kernel = new Kernel(Node{form, type, read_attributes(info), subject}, info); });
}

}  // namespace na_deploy::ort
