// Norms over all rows of a step.
#pragma once

#include "core/dtype.h"
#include "kernels/norm_args.h"

namespace headrace {



void run(const LayerNorm& job, Dtype dtype, int64_t n_rows);
void run(const RmsNorm& job, Dtype dtype, int64_t n_rows);

}  // namespace headrace
