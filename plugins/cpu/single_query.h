// Attention of one query by the definition, for what the kernels get wrong: they multiply keys that a query does not
// see by zeros, and infinity times zero is no number; and what is not seen weighs as much as scores below kMasked.
#pragma once

#include "plan.h"
#include "tile.h"

namespace na_deploy::cpu {

// Computes output and lse of the query in a lane of a tile, in double precision.
void attend_singly(const na_params& params, const Plan& plan, const Tile& tile, int64_t lane);

}  // namespace na_deploy::cpu
