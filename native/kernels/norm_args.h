// Arguments of the norms: plain data, so that a recorded step can keep them.
#pragma once

#include <cstdint>

namespace headrace {

// y = x / sqrt(mean(x^2) + eps) times the weight, head by head of each row.
struct RmsNorm {
    const void* x;
    const void* weight;  // [weights, size]: head h takes h % weights
    void* y;             // dense rows
    int64_t size;        // values of a head
    int64_t heads;       // of a row, one behind another
    int64_t x_stride;    // values from a row to the next
    int64_t weights;
    float eps;
    bool plus_one;       // factor 1 + weight in fp32 before rounding; else the normed value is rounded first
};

// y = (x - mean) / sqrt(var + eps) * (plus + weight) + bias, row by row; plus is 0 or 1.
struct LayerNorm {
    const void* x;
    const void* weight;
    const void* bias;
    void* y;  // dense rows
    int64_t size;
    int64_t x_stride;
    float eps;
    float plus;
};

}  // namespace headrace
