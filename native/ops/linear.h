// Products with a packed weight, look-ups in one, and packing.
#pragma once

#include "core/dtype.h"
#include "kernels/linear_args.h"

namespace headrace {

void run(const Linear& job, Dtype dtype, int64_t n_rows);

// Throws std::out_of_range when an id is not in [0, n); nothing is written then.
void run(const Embedding& job, Dtype dtype, int64_t n_rows);

// On the calling thread. Several may fill rows of one weight at once.
void run(const PackRows& job, Dtype dtype, int64_t n_rows);

}  // namespace headrace
