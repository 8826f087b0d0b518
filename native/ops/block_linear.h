// Products with a weight in blocks, look-ups in one, and packing.
#pragma once

#include "core/dtype.h"
#include "kernels/block_linear_args.h"

namespace headrace {

// All throw std::invalid_argument for a format that has no kernels.
void run(const BlockLinear& job, Dtype dtype, int64_t n_rows);

// Throws std::out_of_range when an id is not in [0, n); nothing is written then.
void run(const BlockEmbedding& job, Dtype dtype, int64_t n_rows);

void run(const PackBlocks& job, int64_t n_rows);

void check(const BlockFormat& format);

}  // namespace headrace
