// Latent attention over all rows of a step, and products head by head.
#pragma once

#include "kernels/latent_args.h"
#include "ops/attention.h"

namespace headrace {

void run(const WriteLatent& job, const AttentionPlan* plan, Dtype rows, Dtype cache, int64_t n_rows);
void run(const LatentAttend& job, AttentionPlan* plan, Dtype rows, Dtype cache, int64_t n_rows);
void run(const PerHead& job, Dtype dtype, int64_t n_rows);

}  // namespace headrace
