// Mixtures of experts over all rows of a step.
#pragma once

#include "core/dtype.h"
#include "kernels/moe_args.h"

namespace headrace {

void run(const Route& job, int64_t n_rows);
void run(const SigmoidRoute& job, int64_t n_rows);

// Throws std::out_of_range when an id is not in [0, n_experts); y is not touched then.
void run(const Experts& job, Dtype dtype, int64_t n_rows);

}  // namespace headrace
