#include "attributes.h"

namespace na_deploy::ort {
namespace {

// Of kernel_size and dilation: their product fits 64 bits.
constexpr int64_t kLargest = 0x7fffffff;

// ONNX Runtime answers a missing attribute and one of another type with the same code: does any type fit?
bool is_present(const OrtKernelInfo* info, const char* name) {
  const OrtApi& api = Ort::GetApi();
  const auto succeeds = [](OrtStatus* raw) {
    const Ort::Status status(raw);
    return status.IsOK();
  };
  int64_t integer = 0;
  float number = 0.0F;
  size_t size = 0;
  return succeeds(api.KernelInfoGetAttribute_int64(info, name, &integer)) ||
         succeeds(api.KernelInfoGetAttribute_float(info, name, &number)) ||
         succeeds(api.KernelInfoGetAttributeArray_float(info, name, nullptr, &size)) ||
         succeeds(api.KernelInfoGetAttributeArray_int64(info, name, nullptr, &size)) ||
         succeeds(api.KernelInfoGetAttribute_string(info, name, nullptr, &size));
}

// Reads an INTS attribute into `values`; false where the node does not have it.
bool read_ints(const OrtKernelInfo* info, const char* name, std::vector<int64_t>& values) {
  const OrtApi& api = Ort::GetApi();
  size_t size = 0;
  const Ort::Status status(api.KernelInfoGetAttributeArray_int64(info, name, nullptr, &size));
  if (!status.IsOK()) {
    if (is_present(info, name)) refuse("the attribute ", name, " must be a list of integers (INTS)");
    return false;
  }
  if (size == 0) refuse("the attribute ", name, " must be a list of integers (INTS), one per spatial axis");
  values.resize(size);
  Ort::ThrowOnError(api.KernelInfoGetAttributeArray_int64(info, name, values.data(), &size));
  return true;
}

// A single value stands for every axis.
std::vector<int64_t> read_per_axis(const OrtKernelInfo* info, const char* name, int64_t otherwise, size_t rank) {
  std::vector<int64_t> values;
  if (!read_ints(info, name, values)) return std::vector<int64_t>(rank, otherwise);
  if (values.size() == 1) values.resize(rank, values.front());
  if (values.size() != rank) {
    refuse(name, " has ", values.size(), " values ", to_text(values), " and kernel_size has ", rank,
           "; give one for all spatial axes or one per axis");
  }
  return values;
}

void check_ranges(const Attributes& attributes) {
  for (size_t axis = 0; axis < attributes.kernel_size.size(); ++axis) {
    const int64_t kernel = attributes.kernel_size[axis];
    const int64_t dilation = attributes.dilation[axis];
    const int64_t stride = attributes.stride[axis];
    if (kernel < 1 || kernel > kLargest)
      refuse("kernel_size must lie between 1 and ", kLargest, ", got ", kernel, " on axis ", axis);
    if (dilation < 1 || dilation > kLargest)
      refuse("dilation must lie between 1 and ", kLargest, ", got ", dilation, " on axis ", axis);
    if (stride < 1 || stride > kernel) {
      refuse("stride must lie between 1 and kernel_size=", kernel, ", got ", stride, " on axis ", axis);
    }
  }
}

}  // namespace

Attributes read_attributes(const OrtKernelInfo* info) {
  Attributes attributes;
  if (!read_ints(info, "kernel_size", attributes.kernel_size)) {
    refuse("the attribute kernel_size is missing; it needs one value per spatial axis");
  }
  const size_t rank = attributes.kernel_size.size();
  if (rank < 1 || rank > 3) refuse("kernel_size must have 1 to 3 values, one per spatial axis, got ", rank);
  attributes.dilation = read_per_axis(info, "dilation", 1, rank);
  attributes.stride = read_per_axis(info, "stride", 1, rank);
  attributes.is_causal = read_per_axis(info, "is_causal", 0, rank);
  const Ort::Status status(Ort::GetApi().KernelInfoGetAttribute_float(info, "scale", &attributes.scale));
  if (!status.IsOK()) {
    if (is_present(info, "scale")) refuse("the attribute scale must be a number (FLOAT)");
    attributes.scale = 0.0F;
  }
  check_ranges(attributes);
  return attributes;
}

}  // namespace na_deploy::ort
