// Arguments of low-rank additions to a product (LoRA, arXiv 2106.09685).
#pragma once

#include <cstdint>

#include "kernels/linear_args.h"

namespace headrace {

// y[rows[i]] += scale * B u[i], place by place: a sum over the rank in order, in fp32, one fused addition, one rounding.
struct LowRankAdd {
    const void* b;        // packed [n, rank], in the dtype of y
    int64_t rank;
    int64_t n;
    float scale;
    void* y;              // its first column
    int64_t y_stride;
    const int32_t* rows;  // of y, for each place
};

}  // namespace headrace
