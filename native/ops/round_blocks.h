// Rounding of weights on the thread of the caller: loading has a thread for each parameter.
#pragma once

#include "core/dtype.h"
#include "kernels/round_blocks_args.h"

namespace headrace {

// Returns `RoundingFault`s of all rows together; the numbers are good if there is none.
int64_t run(const RoundBlocks& job, Dtype dtype, int64_t n_rows);

}  // namespace headrace
