// Arguments of the norms: plain data, so that a recorded step can keep them.
#pragma once

#include <cstdint>

namespace headrace {

// y = x / sqrt(mean(x^2) + eps) * (weight + offset), row by row.
struct RmsNorm {
    const void* x;
    const void* weight;
    void* y;
    int64_t size;        // values of a row
    int64_t x_stride;    // values from a row to the next
    int64_t y_stride;
    int64_t heads;       // rows that have weights of their own, in turn: weight is [heads, size]
    float eps;
    bool plus_one;       // factor 1 + weight in fp32 before rounding; else the normed value is rounded first
};

}  // namespace headrace
