// The checks of a problem; each refusal is one sentence.
#include <cstdarg>
#include <cstdint>
#include <cstdio>
#include <limits>

#include "na_params.h"
#include "padding.h"

namespace {

using Long = long long;

// Elements of a tensor must be countable in bytes, and offsets inside a bias table in 32 bits.
constexpr int64_t kMaxElements = std::numeric_limits<int64_t>::max() / 64;
// Largest kernel_size and dilation: their product fits 64 bits.
constexpr Long kLargest = std::numeric_limits<int32_t>::max();
constexpr int64_t kMaxBias = std::numeric_limits<int32_t>::max() / 2;

struct Message {
  char* text;
  size_t size;

  __attribute__((format(printf, 2, 3))) int refuse(const char* format, ...) const {
    if (text != nullptr && size > 0) {
      va_list arguments;
      va_start(arguments, format);
      std::vsnprintf(text, size, format, arguments);
      va_end(arguments);
    }
    return 1;
  }
};

// Multiplies `product` by `factor`; returns false, without a change, if the result would exceed `limit`.
bool multiply(int64_t& product, int64_t factor, int64_t limit) {
  if (factor != 0 && product > limit / factor) return false;
  product *= factor;
  return true;
}

int check_attributes(const na_params& p, int axis, const Message& message) {
  const Long kernel = p.kernel_size[axis];
  const Long dilation = p.dilation[axis];
  const Long stride = p.stride[axis];
  if (kernel < 1 || kernel > kLargest) {
    return message.refuse("kernel_size must lie between 1 and %lld, got %lld on axis %d", kLargest, kernel, axis);
  }
  if (dilation < 1 || dilation > kLargest) {
    return message.refuse("dilation must lie between 1 and %lld, got %lld on axis %d", kLargest, dilation, axis);
  }
  if (stride < 1 || stride > kernel) {
    return message.refuse("stride must lie between 1 and kernel_size=%lld, got %lld on axis %d", kernel, stride, axis);
  }
  if (p.is_causal[axis] != 0 && p.is_causal[axis] != 1) {
    return message.refuse("is_causal must be 0 or 1, got %lld on axis %d", static_cast<Long>(p.is_causal[axis]), axis);
  }
  return 0;
}

int check_length(const na_params& p, int axis, const Message& message) {
  const Long length = p.length[axis];
  const Long kernel = p.kernel_size[axis];
  const Long dilation = p.dilation[axis];
  if (length < 1) return message.refuse("spatial axis %d must have at least one position, got %lld", axis, length);
  if (p.padding == nullptr && kernel > length / dilation) {
    return message.refuse(
        "kernel_size*dilation = %lld*%lld = %lld exceeds the length %lld of spatial axis %d; use a larger map, a "
        "smaller kernel_size or a smaller dilation",
        kernel, dilation, kernel * dilation, length, axis);
  }
  return 0;
}

}  // namespace

extern "C" int na_check_attributes(const na_params* params, char* text, size_t size) {
  const Message message{text, size};
  if (params == nullptr) return message.refuse("there are no parameters");
  if (params->rank < 1 || params->rank > 3) {
    return message.refuse("there must be 1 to 3 spatial axes, got %d", params->rank);
  }
  for (int axis = 0; axis < params->rank; ++axis) {
    if (check_attributes(*params, axis, message) != 0) return 1;
  }
  return 0;
}

extern "C" int na_check(const na_params* params, char* text, size_t size) {
  const Message message{text, size};
  if (na_check_attributes(params, text, size) != 0) return 1;
  const na_params& p = *params;
  if (p.dtype < NA_FLOAT32 || p.dtype > NA_BFLOAT16) {
    return message.refuse("the element type must be float32, float16 or bfloat16, got number %d", p.dtype);
  }
  if (p.batch < 0) return message.refuse("the batch must not be negative, got %lld", static_cast<Long>(p.batch));
  if (p.padding != nullptr && p.packed == 0) return message.refuse("padding is for packed qkv alone");
  for (int axis = 0; axis < p.rank; ++axis) {
    if (check_length(p, axis, message) != 0) return 1;
  }
  if (p.heads < 1 || p.head_dim < 1 || p.value_dim < 1) {
    return message.refuse(
        "there must be at least one head of at least one channel, got %lld heads of %lld channels "
        "and values of %lld",
        static_cast<Long>(p.heads), static_cast<Long>(p.head_dim), static_cast<Long>(p.value_dim));
  }
  if (p.key_heads < 1 || p.heads % p.key_heads != 0) {
    return message.refuse("query has %lld heads, which is not a multiple of key's %lld", static_cast<Long>(p.heads),
                          static_cast<Long>(p.key_heads));
  }
  if (p.packed != 0 && (p.key_heads != p.heads || p.value_dim != p.head_dim || p.additional != 0)) {
    return message.refuse("packed qkv has as many key heads as heads, values as wide as keys and no additional keys");
  }
  if (p.additional < 0) {
    return message.refuse("additional keys must not be negative in number, got %lld", static_cast<Long>(p.additional));
  }
  int64_t elements = 3;
  int64_t bias = 1;
  bool fits = multiply(elements, p.batch > 0 ? p.batch : 1, kMaxElements) &&
              multiply(elements, p.heads, kMaxElements) &&
              multiply(elements, p.head_dim > p.value_dim ? p.head_dim : p.value_dim, kMaxElements);
  int64_t extra = elements;
  fits = fits && multiply(extra, p.additional, kMaxElements);
  for (int axis = 0; axis < p.rank; ++axis) {
    fits = fits && multiply(elements, na_deploy::padded_length(p.length[axis], p.kernel_size[axis], p.dilation[axis]),
                            kMaxElements);
    if (p.rel_pos_bias != nullptr) fits = fits && multiply(bias, 2 * p.kernel_size[axis] - 1, kMaxBias);
  }
  if (!fits) return message.refuse("the tensors have more elements than can be addressed");
  if (p.batch > 0) {
    if (p.query == nullptr || (p.packed == 0 && (p.key == nullptr || p.value == nullptr))) {
      return message.refuse("query, key and value must be given");
    }
    if (p.additional > 0 && (p.additional_key == nullptr || p.additional_value == nullptr)) {
      return message.refuse("additional_key and additional_value go together: give both or neither");
    }
  }
  return 0;
}
