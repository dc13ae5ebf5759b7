#include "bias.h"

#include "numbers.h"

namespace na_deploy::cpu {
namespace {

constexpr float kLog2E = 1.44269504088896341F;

}  // namespace

void spread_bias(const Plan& plan, const na_params& params, int64_t head, float* spread) {
  const int64_t (&width)[kAxes] = plan.spread.width;
  const int64_t lanes = plan.quads ? plan.vector : plan.lanes;
  const int64_t used = plan.quads ? plan.vector : plan.used_lanes;
  const int64_t keys = plan.quads ? plan.vector / kQuad : 1;  // keys of a group
  int64_t row[kAxes];
  for (row[0] = 0; row[0] < width[0]; ++row[0]) {
    for (row[1] = 0; row[1] < width[1]; ++row[1]) {
      for (row[2] = 0; row[2] < width[2]; ++row[2]) {
        for (int64_t lane = 0; lane < lanes; ++lane, ++spread) {
          int64_t index = head;
          bool inside = lane < used;
          for (int a = 0; inside && a < kAxes; ++a) {
            const int64_t key = row[a] + plan.spread.base[a] + (a == kAxes - 1 ? lane % keys : 0);
            const int64_t offset = key - plan.place[lane / keys][a];
            const int64_t size = 2 * plan.axis[a].kernel_size - 1;
            inside = offset >= 0 && offset < size;
            index = index * size + offset;
          }
          *spread = inside ? number_at(params.rel_pos_bias, bias_dtype(params), index) * kLog2E : 0.0F;
        }
      }
    }
  }
}

const float* widened_bias(const Plan& plan, const na_params& params, int64_t head, float* buffer) {
  if (bias_dtype(params) == NA_FLOAT32)
    return static_cast<const float*>(params.rel_pos_bias) + head * plan.bias_elements;
  for (int64_t i = 0; i < plan.bias_elements; ++i) {
    buffer[i] = number_at(params.rel_pos_bias, bias_dtype(params), head * plan.bias_elements + i);
  }
  return buffer;
}

}  // namespace na_deploy::cpu
