// Floats to whole numbers and scales, when a weight is loaded. `ops/reference/round_blocks.py` has the formulas.
#pragma once

#include <cstdint>

#include "core/half.h"
#include "kernels/block_linear_args.h"

namespace headrace {

// What stands in the way of rounding a row.
enum RoundingFault : int64_t { not_finite = 1, too_large = 2 };

// Rows [rows, k] to numbers [rows, k], a byte each, and scales [rows, blocks of k].
struct RoundBlocks {
    const void* x;  // dense rows
    uint8_t* numbers;
    half* scales;
    int64_t k;
    int bits;  // 8: numbers are from 1 to 255, 128 is zero; 4: from 0 to 15, 8 is zero
};

}  // namespace headrace
