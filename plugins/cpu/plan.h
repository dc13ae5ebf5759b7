// The plan of a problem, cut into tasks: one task is a tile of neighbouring queries of one head, one query for each
// lane of a few SIMD vectors.
#pragma once

#include <cstddef>
#include <cstdint>

#include "na_cpu.h"

namespace na_deploy::cpu {

constexpr int kAxes = 3;                                 // problems of lower rank get leading axes of length 1
constexpr int64_t kMaxVector = 16;                       // SIMD lanes at most
constexpr int64_t kMaxVectors = 4;                       // vectors of a tile that is not a whole dilation group
constexpr int64_t kMaxLanes = kMaxVector * kMaxVectors;  // queries of a tile, also of a whole group
constexpr int64_t kMaxQuadKeys = 512;                    // keys of four queries that quad_kernel.cpp holds at once
constexpr int64_t kMaxQuadRow = kMaxQuadKeys;
constexpr int64_t kQuad = 4;  // lanes that the second product takes at once

// One axis: its attributes and its tiles. `tiles` counts those of the longest dilation group.
struct AxisPlan {
  int64_t length = 1;
  int64_t kernel_size = 1;
  int64_t dilation = 1;
  int64_t stride = 1;
  bool is_causal = false;
  int64_t tile = 1;
  int64_t tiles = 1;
  int64_t span = 1;  // keys that a tile reads, at most
};

// Strides of a tensor, in elements, which give the place of its element [batch, position..., head, 0].
struct Strides {
  int64_t offset = 0;
  int64_t batch = 0;
  int64_t axis[kAxes] = {};
  int64_t head = 0;
};

// The bias spread over lanes, (rows of axis 0, 1, 2, lanes): its element [r, lane] is the bias between the lane's query
// and the key at r + base - (kernel_size - 1) from the tile's origin. For quads a vector's lanes are (query, key of the
// group), r is the group's first key, and the origin is the quad's. Where one tile takes a whole group, as in DiNAT's
// dense groups, base leaves out the rows of keys before the group's first, and width those after its last.
struct SpreadBias {
  int64_t width[kAxes] = {1, 1, 1};
  int64_t base[kAxes] = {};
  int64_t elements = 0;  // size for one head; 0: spreading does not pay, biases are gathered key by key
};

struct Plan {
  bool quads = false;        // quad_kernel.cpp, else tile_kernel.cpp or group_kernel.cpp
  bool whole_group = false;  // a task is a dilation group whose every query sees every key
  bool dots = false;         // bfloat16 is multiplied in pairs, without conversion to float32
  int64_t quad[kAxes] = {};  // queries of four consecutive lanes
  AxisPlan axis[kAxes];
  Strides query, key, value;
  Strides output;  // those of lse are these divided by value_dim
  int64_t tasks = 0;
  int64_t vector = 1;                        // SIMD lanes
  int64_t lanes = 1;                         // whole vectors of the tile
  int64_t used_lanes = 1;                    // the tile's queries
  int64_t place[kMaxLanes][kAxes] = {};      // place of each lane's query in the tile
  uint64_t lanes_at[kAxes][kMaxLanes] = {};  // the lanes whose query has this place on this axis, as bits
  int64_t lane_query[kMaxLanes] = {};        // distance of each lane's query from the first one
  int64_t lane_output[kMaxLanes] = {};
  int64_t block = 1;            // keys whose scores are held at once
  int64_t padded_head_dim = 1;  // rounded up to whole vectors
  int64_t padded_value_dim = 1;
  bool keys_in_place = false;    // keys are read where they are, without a copy
  bool values_in_place = false;  // values are read where they are, without a copy
  int64_t bias_elements = 0;     // elements of one head's rel_pos_bias, 0 without one
  SpreadBias spread;
  bool spread_per_call = false;  // spreading pays for a single call
  float scale = 1.0F;            // includes log2(e): scores are exponents of two
};

// The instruction set in use.
struct Target {
  int64_t vector;  // SIMD lanes
  bool dots;       // it has dot products of bfloat16
};

Target target_in_use();

// The cut of a problem: the kernel and the size of its tiles.
struct Cut {
  int64_t tile[kAxes] = {1, 1, 1};
  int64_t quad[kAxes] = {};  // the four queries of a quad for quad_kernel.cpp, zeros for tile_kernel.cpp
};

// Chooses the cut with the least work and completes the plan.
Plan make_plan(const na_params& params, const Target& target);

// Completes the plan for a cut chosen before.
Plan make_plan(const na_params& params, const Target& target, const Cut& cut);

// The kernels: compute the tasks [first, last). That of groups takes plans of whole groups whose bias is spread.
void run_in_tiles(const na_params& params, const Plan& plan, int64_t first, int64_t last,
                  const struct Scratch& scratch);
void run_in_groups(const na_params& params, const Plan& plan, int64_t first, int64_t last,
                   const struct Scratch& scratch);
void run_in_quads(const na_params& params, const Plan& plan, int64_t first, int64_t last,
                  const struct Scratch& scratch);

// Scratch memory of one thread: arrays one after another, each aligned to a vector.
struct Scratch {
  float* query;              // (padded_head_dim, lanes), scaled; with dots pairs of bfloat16, not scaled. A group's
                             // queries without a lane follow in rows
  float* key;                // (block, padded_head_dim) unless keys are read in place; room for four rows
  const float** key_rows;    // (block)
  float* value;              // (block, padded_value_dim) unless values are read in place; with dots pairs of keys
  const void** value_rows;   // (block) with dots in tiles: the values in the tensor
  float* score;              // (block, lanes), then their exponentials, with dots as pairs of keys; likewise
  float* output;             // (lanes, padded_value_dim), not yet divided by the sum
  float* bias;               // one head's rel_pos_bias in float32, unless it is float32 already
  float* spread;             // one head's spread bias
  uint64_t* visible[kAxes];  // (span) lanes that see a key of the tile's box along the axis, as bits
  struct KeyRun* runs;       // (block), see KeyRun
  size_t bytes;
};

// Neighbouring keys along the last axis.
struct KeyRun {
  int64_t at;  // place of the first one in the block
  int64_t count;
  int64_t key[kAxes];  // elements of the dilation group; key[0] < 0: additional keys, which all queries see
  const float* value;  // the first key's row
  int64_t value_step;  // floats from one row to the next
};

Scratch lay_out(const Plan& plan, const na_params& params, void* memory);

}  // namespace na_deploy::cpu
