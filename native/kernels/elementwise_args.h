// Arguments of what is computed value by value.
#pragma once

#include <cstdint>

namespace headrace {

enum class Elementwise : int {
    silu_mul = 0,       // y = silu(x[:n]) * x[n:]
    gelu_tanh_mul = 1,  // y = gelu(x[:n]) * x[n:], gelu in its tanh form
    relu_squared = 2,   // y = max(x, 0)^2
    soft_cap = 3,       // y = c * tanh(x / c)
    add = 4,            // y = x + other
    scale = 5,          // y = x * c, c rounded to the dtype of x
    clamped_glu = 6,    // y = (u + 1) g sigmoid(1.702 g), g = min(x[:n], c), u = x[n:] between -c and c (GPT-OSS)
    gelu = 7,           // y = gelu(x)
    sigmoid_mul = 8,    // y = x * sigmoid(other)
    row_sigmoid_mul = 9,  // the same, other has one value a row
    add_scaled = 10,      // y = x + c * other
    count = 11,
};

// Row by row, in fp32, rounded once.
struct ElementwiseRows {
    const void* x;
    const void* other;
    void* y;
    int64_t size;  // values of a row of y
    int64_t x_stride;
    int64_t other_stride;
    int64_t y_stride;
    float c;
};

// y = x * (1 + attn_scale * log(1 + floor((position + 1) / floor_scale))), row by row, rounded once.
struct PositionScale {
    const void* x;
    const int64_t* positions;
    void* y;
    int64_t size;  // values of a row
    int64_t x_stride;
    float floor_scale;
    float attn_scale;
};

// Cosines and sines of a step's rows: position * inv_freq in fp32, times `factor`.
struct RopeAngles {
    const int64_t* positions;
    const float* inv_freq;  // [half]
    float* angles;          // [rows, 2, half]
    int64_t half;
    float factor;
};

// Rotates the first 2 * half values of each head: value i with value half + i. The others are copied.
struct Rope {
    const void* x;  // [rows, heads, head_dim], dense heads
    const float* angles;
    void* y;  // the same, dense
    int64_t x_stride;
    int64_t heads;
    int64_t head_dim;
    int64_t half;
};

}  // namespace headrace
