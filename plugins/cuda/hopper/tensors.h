// Tensors as the tensor memory accelerator sees them: five axes, channels first, then the map's last axis, and so on to
// the images. One copy brings a box of 64 channels of neighbouring positions, on any axes.
#pragma once

#include <cstdint>

#include "problem.h"

namespace na_deploy::cuda::hopper {

constexpr int kTensorAxes = 5;
constexpr int kBoxChannels = 64;  // 128 bytes of 16-bit numbers, the widest row that is swizzled

// Description of a tensor for the device, in elements of two bytes.
struct TensorBox {
  const void* base = nullptr;
  uint64_t size[kTensorAxes] = {1, 1, 1, 1, 1};
  uint64_t distance[kTensorAxes] = {1, 8, 8, 8, 8};  // elements; a multiple of 16 bytes, on axes of one element too
  uint32_t box[kTensorAxes] = {kBoxChannels, 1, 1, 1, 1};
};

// A tensor (B, *X, position elements) of which heads * dim elements are channels.
inline TensorBox map_tensor(const CudaProblem& p, const void* base, int32_t channels, int32_t position, Sizes box) {
  TensorBox r;
  r.base = base;
  r.size[0] = static_cast<uint64_t>(channels);
  uint64_t distance = static_cast<uint64_t>(position);
  for (int a = kAxes - 1; a >= 0; --a) {
    const int axis = kAxes - a;
    r.size[axis] = static_cast<uint64_t>(p.axis[a].length);
    r.distance[axis] = distance;
    r.box[axis] = static_cast<uint32_t>(box[a]);
    distance *= r.size[axis];
  }
  r.size[kTensorAxes - 1] = static_cast<uint64_t>(p.batch);
  r.distance[kTensorAxes - 1] = distance;
  return r;
}

// Additional keys or values (B, M, heads, dim).
inline TensorBox additional_tensor(const CudaProblem& p, const void* base, int32_t channels, int32_t keys) {
  TensorBox r;
  r.base = base;
  r.size[0] = r.distance[1] = r.distance[2] = r.distance[3] = static_cast<uint64_t>(channels);
  r.size[1] = static_cast<uint64_t>(p.additional);
  r.box[1] = static_cast<uint32_t>(keys);
  r.size[kTensorAxes - 1] = static_cast<uint64_t>(p.batch);
  r.distance[kTensorAxes - 1] = r.size[0] * r.size[1];
  return r;
}

// All tensors of a problem, of which the kernel reads boxes. `Map`: a tensor described in the device's own terms.
template <typename Map>
struct Tensors {
  Map query;
  Map key;
  Map value;
  Map additional_key;
  Map additional_value;
};

// Describes all tensors of a problem. `encode(TensorBox)`: makes a Map.
template <typename S, typename Encode>
auto make_tensors(const CudaProblem& p, const Encode& encode) -> Tensors<decltype(encode(TensorBox{}))> {
  const int32_t key_channels = p.key_heads * p.head_dim;
  const int32_t value_channels = p.key_heads * p.value_dim;
  Tensors<decltype(encode(TensorBox{}))> r;
  r.query = encode(map_tensor(p, p.query, p.heads * p.head_dim, p.query_position, S::tile()));
  r.key = encode(map_tensor(p, p.key, key_channels, p.key_position, S::box()));
  r.value = encode(map_tensor(p, p.value, value_channels, p.value_position, S::box()));
  r.additional_key = r.key;  // never read without additional keys
  r.additional_value = r.value;
  if (p.additional > 0) {
    r.additional_key = encode(additional_tensor(p, p.additional_key, key_channels, S::kKeys));
    r.additional_value = encode(additional_tensor(p, p.additional_value, value_channels, S::kKeys));
  }
  return r;
}

}  // namespace na_deploy::cuda::hopper
