#include "na_openvino.h"

#include <tbb/task_arena.h>
#include <tbb/version.h>

#include <algorithm>
#include <cstdio>
#include <exception>
#include <new>
#include <string>

#include "attention_node.h"
#include "na_cpu.h"

namespace ov_node = na_deploy::openvino;

struct na_openvino_node {
  ov_node::AttentionNode node;
};

namespace {

static_assert(NA_OPENVINO_INPUTS == na_deploy::kMostInputs && NA_OPENVINO_SIZES == na_deploy::kMostSizes);

// Runs the function; writes what it throws as a sentence and returns 1 then.
template <typename Function>
int told(char* message, size_t size, const Function& function) noexcept {
  const char* sentence = "there is not enough memory";
  try {
    function();
    return 0;
  } catch (const std::bad_alloc&) {
    if (message != nullptr) std::snprintf(message, size, "%s", sentence);
  } catch (const std::exception& error) {
    if (message != nullptr) std::snprintf(message, size, "%s", error.what());
  }
  return 1;
}

std::vector<int64_t> to_vector(const na_openvino_list& list) { return {list.values, list.values + list.count}; }

void copy_inputs(const na_openvino_input* from, na_deploy::Input (&to)[na_deploy::kMostInputs]) {
  for (na_deploy::Input& input : to) {
    input.rank = from->rank;
    std::copy_n(from->size, NA_OPENVINO_SIZES, input.size);
    ++from;
  }
}

}  // namespace

extern "C" {

int32_t na_openvino_interface(void) { return NA_OPENVINO_INTERFACE; }

const char* na_openvino_target(void) { return na_cpu_target(); }

const char* na_openvino_compiled_tbb(void) {
  static const std::string version = std::to_string(TBB_VERSION_MAJOR) + "." + std::to_string(TBB_VERSION_MINOR);
  return version.c_str();
}

const char* na_openvino_running_tbb(void) {
  static const std::string version = [] {
    const std::string text = TBB_runtime_version();  // "2021.13.1"
    const size_t minor = text.find('.');
    return text.substr(0, minor == std::string::npos ? minor : text.find('.', minor + 1));
  }();
  return version.c_str();
}

int32_t na_openvino_concurrency(void) { return tbb::this_task_arena::max_concurrency(); }

int na_openvino_make(const na_openvino_attributes* attributes, na_openvino_node** node, char* message, size_t size) {
  *node = nullptr;
  return told(message, size, [&] {
    na_deploy::AttributeLists lists;
    lists.kernel_size = to_vector(attributes->kernel_size);
    lists.dilation = to_vector(attributes->dilation);
    lists.stride = to_vector(attributes->stride);
    lists.is_causal = to_vector(attributes->is_causal);
    lists.scale = attributes->scale;
    const auto kind = attributes->packed != 0 ? na_deploy::OperatorKind::kPacked : na_deploy::OperatorKind::kSeparate;
    *node = new na_openvino_node{ov_node::AttentionNode(kind, lists)};
  });
}

void na_openvino_release(na_openvino_node* node) { delete node; }

int na_openvino_output_sizes(const na_openvino_node* node, const na_openvino_input* inputs, int with_channels,
                             int64_t* sizes, int32_t* rank, char* message, size_t size) {
  return told(message, size, [&] {
    na_deploy::Input given[na_deploy::kMostInputs];
    copy_inputs(inputs, given);
    const std::vector<int64_t> found = node->node.output_sizes(given, with_channels != 0);
    std::copy(found.begin(), found.end(), sizes);
    *rank = static_cast<int32_t>(found.size());
  });
}

int na_openvino_run(na_openvino_node* node, const na_openvino_call* call, const void* input0, const void* input1,
                    const void* input2, const void* input3, const void* input4, const void* input5, void* output,
                    float* lse, char* message, size_t size) {
  return told(message, size, [&] {
    ov_node::Tensors tensors;
    tensors.dtype = static_cast<na_dtype>(call->dtype);
    tensors.bias_is_float32 = call->bias_is_float32 != 0;
    tensors.constant_bias = call->constant_bias != 0;
    copy_inputs(call->inputs, tensors.inputs);
    const void* data[] = {input0, input1, input2, input3, input4, input5};
    for (int i = 0; i < NA_OPENVINO_INPUTS; ++i) tensors.inputs[i].data = data[i];
    tensors.output = output;
    tensors.lse = lse;
    node->node.run(tensors);
  });
}

}  // extern "C"
