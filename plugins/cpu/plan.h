// How a problem is cut into tasks: one task is a tile of neighbouring queries of one head, one per SIMD lane.
#pragma once

#include <cstddef>
#include <cstdint>

#include "na_cpu.h"

namespace na_deploy {

constexpr int kAxes = 3;       // problems of lower rank get leading axes of length 1
constexpr int kMaxLanes = 16;  // queries per tile at most

// One axis: its attributes and its tiles. `tiles` counts those of the longest dilation group.
struct AxisPlan {
  int64_t length = 1;
  int64_t kernel_size = 1;
  int64_t dilation = 1;
  int64_t stride = 1;
  bool is_causal = false;
  int64_t tile = 1;
  int64_t tiles = 1;
};

// Where the element [batch, position..., head, 0] of a tensor is, counted in elements.
struct Strides {
  int64_t offset = 0;
  int64_t batch = 0;
  int64_t axis[kAxes] = {};
  int64_t head = 0;
};

struct Plan {
  AxisPlan axis[kAxes];
  Strides query, key, value;
  Strides output;      // of the output; lse has the same divided by value_dim
  int64_t tasks = 0;
  int64_t lanes = 1;
  int64_t block = 1;   // keys whose scores are held at once
  int64_t padded_dim;  // value_dim rounded up to whole vectors
  int64_t bias_size;   // elements of one head's rel_pos_bias, 0 without
  float scale = 1.0F;
};

Plan make_plan(const na_params& params, int64_t lanes);

// Scratch memory of one thread: arrays of floats one after another, each aligned to a vector.
struct Scratch {
  float* query;   // (head_dim, lanes), scaled
  float* key;     // (block, head_dim)
  float* value;   // (block, padded_dim)
  float* score;   // (block, lanes), then their exponentials
  float* output;  // (lanes, padded_dim), not yet divided by the sum
  float* bias;    // one head's rel_pos_bias
  int64_t* runs;  // (block, 5): runs of neighbouring keys in the block, see tile_kernel.cpp
  size_t bytes;
};

Scratch lay_out(const Plan& plan, const na_params& params, void* memory);

}  // namespace na_deploy
