// The plan by which the one-pass kernel covers a problem: the shape of tiles, a warp's part of one, the places of keys
// in shared memory, the number of images that a block attends at once. The host chooses (plan.cpp), the kernel follows.
#pragma once

#include <cstdint>
#include <optional>

#include "problem.h"
#include "tiles.h"

namespace na_deploy::cuda::onepass {

// Keys that a warp's queries see, in chunks of 16, come in kinds: kernels exist for these counts, and one for all
// larger ones, which goes through its chunks in groups (groups.h). A kernel passes over its chunks from few_chunks() on
// where a warp has no more.
#define NA_ONEPASS_CHUNKS(use) use(4) use(7) use(9)
constexpr int32_t kChunkKinds[] = {4, 7, 9};
constexpr int32_t kMostChunks = 32;
NA_HOST_DEVICE constexpr bool is_grouped(int chunks) { return chunks > 9; }
NA_HOST_DEVICE constexpr int few_chunks(int chunks) {
  return chunks == 4 ? 3 : chunks == 7 ? 4 : chunks == 9 ? 8 : chunks;
}

// Chunks are cut into the fewest groups of kGroupChunks, as many of them as possible of one chunk less.
constexpr int kGroupChunks = 4;
NA_HOST_DEVICE constexpr int groups_of(int chunks) { return (chunks + kGroupChunks - 1) / kGroupChunks; }
NA_HOST_DEVICE constexpr int whole_groups(int chunks) { return chunks - groups_of(chunks) * (kGroupChunks - 1); }
NA_HOST_DEVICE constexpr int first_chunk(int group, int whole) {
  return group * kGroupChunks - (group > whole ? group - whole : 0);
}

// Chunks of which the scores' start, bias and mask of each pair, stays in registers; the others' lies in shared memory.
NA_HOST_DEVICE constexpr int register_chunks(int dim, int chunks) {
  if (chunks == 7) return dim <= 32 ? 6 : 7;
  return chunks == 4 || (chunks == 9 && dim <= 32) ? chunks : 0;
}

// Most warps of a block, and threads that registers of a multiprocessor are left for: what scores fit into without
// spilling. Shared memory of devices before sm_90 holds fewer blocks, so that more registers do no harm there.
NA_HOST_DEVICE constexpr int most_warps(int dim, int chunks) {
  if (is_grouped(chunks)) return dim <= 32 ? 16 : 12;
  return chunks == 4 && dim <= 32 ? 16 : 8;
}
NA_HOST_DEVICE constexpr int resident_threads(int dim, int chunks, bool is_old) {
  if (is_grouped(chunks)) return 32 * most_warps(dim, chunks);
  if (dim > 32 || chunks > 7) return 256;
  return chunks == 4 ? 512 : is_old ? 256 : 384;
}

constexpr int kRowQueries = 16;    // queries of a warp
constexpr int kChunk = 16;         // keys
constexpr int kStartBytes = 1024;  // bytes of a chunk's start in shared memory, for each warp
constexpr int kSlotBytes = 256;    // bytes of a group's slots
constexpr int kPairBytes = 128;    // bytes of a group's pairs
constexpr int kBiasBytes = 8;      // bytes of a bias and the next
constexpr int kMaskBytes = 128;    // bytes of a group's masks, for each warp
constexpr int kTrip = 4;           // rows that a thread loads at a time

// KeyPlace::at has fields of 8, 8, 9 and 3 bits for the axes and the image, each below a bit for comparisons.
NA_HOST_DEVICE constexpr int at_shift(int axis) { return axis == 2 ? 0 : axis == 1 ? 10 : 19; }
constexpr int kImageShift = 28;
constexpr int32_t most_span(int axis) { return axis == 2 ? 512 : 255; }

// A key of a warp's hull, as all warps of the block have it.
struct alignas(16) KeyPlace {
  uint32_t at;   // from the hull's corner: a field for each axis, the last lowest, and the image's in the highest
  int32_t bias;  // elements of a head's biases from the corner's
  int32_t slot;  // rows in shared memory from the corner's
  int32_t unused;
};

// A query of a warp and what it sees of the warp's hull: first and last key along each axis, as in KeyPlace::at.
struct alignas(16) RowSeen {
  uint32_t first;
  uint32_t last;
  int32_t bias;      // index of the bias of the hull's corner
  int32_t position;  // in the tensors, from the first of the images; -1: there is no such query
};

// Layout of a block's shared memory. `width`: bytes of a row.
struct Room {
  int32_t values;  // offset from a stage's keys
  int32_t queries;
  int32_t stage;      // bytes of a stage
  int32_t positions;  // sources of rows
  int32_t list;       // a KeyPlace for each key; of the kernel with groups its first word
  int32_t seen;       // a RowSeen for each query
  int32_t start;      // starts of scores that are not in registers
  int32_t pieces;     // PieceOfQuery and PieceOfKey of the threads
  int32_t tile;
  // Of the kernel with groups:
  int32_t slots;   // bytes from a hull's corner to each key's row, a group's for a lane together
  int32_t pairs;   // the same for the bias of each second key
  int32_t masks;   // a bit for each score of a group, by warp and lane
  int32_t biases;  // a head's biases / scale, each beside the next; the place of index 0
  int32_t bytes;   // the whole
};

// Places of the pieces of 16 bytes that some threads move, at position 0 of image 0, and their distances. It lies in
// shared memory, each half for all pieces side by side, because the compiler reads constants again for each row.
struct alignas(16) PieceOfQuery {
  uint64_t query;
  uint64_t output;
};
struct alignas(16) PieceOfKey {
  uint64_t key;
  uint64_t value;
};

struct Plan {
  Sizes tile;  // queries of a block along each axis
  Sizes part;  // queries of a warp, unless they are 16 in a row of the tile's, through images too
  int32_t is_flat;
  int32_t images;  // images attended at once
  Sizes hull;      // keys that a tile's queries see, at most
  Sizes span;      // the same of a warp's
  int32_t image_span;
  Sizes pitch;  // rows in shared memory between neighbours
  int32_t image_pitch;
  int32_t rows;  // rows of keys in shared memory, and as many of values
  int32_t warps;
  int32_t chunks;  // chunks of the kernel's kind
  int32_t keys;    // keys of a warp's hull in one image
  int32_t stages;  // 2 if the next image's tensors are loaded meanwhile, else 1
  int32_t shares;  // blocks that share a tile's images
  // A head's biases: distances between neighbours on each axis, in the tensor or, of the kernel with groups, in shared
  // memory; there also the numbers of the whole table, and of what lies in front of index 0 for keys that are not seen.
  Sizes bias_pitch;
  int32_t biases;
  int32_t biases_below;
  Divisor by_tile[kAxes];
  Divisor by_part[kAxes];
  Divisor by_parts[kAxes];  // warps along each axis
  Divisor by_pitch[2];
  Divisor by_image_pitch;
  Divisor by_span[kAxes];
  Divisor by_bias_pitch[2];
  TileGrid grid;
  Room room;
};

// Rows that the block loads at a time.
NA_HOST_DEVICE int32_t rows_at_once(int32_t warps, int row_bytes) { return warps * (32 * 16 / row_bytes); }

NA_HOST_DEVICE Room room_of(const Plan& plan, int dim) {
  Room r{};
  const int row_bytes = 2 * dim;
  r.values = plan.rows * row_bytes;
  r.queries = 2 * r.values;
  r.stage = r.queries + plan.warps * kRowQueries * row_bytes;
  r.positions = plan.stages * r.stage;
  const int32_t trip = kTrip * rows_at_once(plan.warps, row_bytes);
  r.list = r.positions + (plan.rows + trip - 1) / trip * trip * 4;
  const int32_t place = is_grouped(plan.chunks) ? 4 : static_cast<int32_t>(sizeof(KeyPlace));
  r.seen = r.list + plan.chunks * kChunk * place;
  r.pieces = r.seen + plan.warps * kRowQueries * static_cast<int32_t>(sizeof(RowSeen));
  r.tile = r.pieces + row_bytes / 16 * static_cast<int32_t>(sizeof(PieceOfQuery) + sizeof(PieceOfKey));
  r.start = (r.tile + static_cast<int32_t>(sizeof(Tile)) + 127) / 128 * 128;
  if (!is_grouped(plan.chunks)) {
    r.bytes = r.start + plan.warps * (plan.chunks - register_chunks(dim, plan.chunks)) * kStartBytes;
    return r;
  }
  const int32_t groups = groups_of(plan.chunks);
  r.slots = r.start;
  r.pairs = r.slots + groups * kSlotBytes;
  r.masks = r.pairs + groups * kPairBytes;
  r.biases = r.masks + plan.warps * groups * kMaskBytes + plan.biases_below * kBiasBytes;
  r.bytes = r.biases + (plan.biases - plan.biases_below) * kBiasBytes;
  return r;
}

// Shared memory and processors of the present device.
struct Device {
  int32_t multiprocessors;
  int32_t block_shared;  // bytes of shared memory that a block may have
  int32_t shared;        // bytes that all blocks of a multiprocessor have
};

// Cycles from a launch to the first instruction of its blocks, and from their last one to the next launch.
constexpr double kLaunchCycles = 3800.0;

// A plan and its estimated time in cycles of the device.
struct Costed {
  Plan plan;
  double cost;
};

// Tactics differ by the most warps of a block; each wants more than half of that, where any plan has as many.
constexpr int32_t tactic_warps(int32_t tactic) { return tactic == 30 ? 4 : tactic == 31 ? 8 : 16; }

// Returns the best plan with at most so many warps, or none if the kernel does not take the problem; keeps its answers.
std::optional<Costed> make_plan(const na_params& p, int32_t most_warps, const Device& device);

}  // namespace na_deploy::cuda::onepass

namespace na_deploy::cuda {

// The present device, as libraries and tests tell it.
onepass::Device present_device();

}  // namespace na_deploy::cuda
