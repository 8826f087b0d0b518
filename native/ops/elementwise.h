// Value-by-value operators, rotation, and angles, over all rows of a step.
#pragma once

#include "core/dtype.h"
#include "kernels/elementwise_args.h"

namespace headrace {

void run(const ElementwiseRows& job, Elementwise kind, Dtype dtype, int64_t n_rows);
void run(const PositionScale& job, Dtype dtype, int64_t n_rows);
void run(const RopeAngles& job, int64_t n_rows);
void run(const Rope& job, Dtype dtype, int64_t n_rows);

}  // namespace headrace
