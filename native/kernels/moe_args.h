// Arguments of mixtures of experts: which experts a row goes to, and what they make of it.
#pragma once

#include <cstdint>

#include "kernels/block_linear_args.h"
#include "kernels/elementwise_args.h"

namespace headrace {

// The k best experts of each row, the better first; of equals the one with the lower number. A row's weights are made of
// its logits in fp32, added in the order of experts (all) or of slots (chosen).
struct Route {
    const float* logits;  // [rows, n_experts]
    int32_t* ids;         // [rows, k]
    float* weights;       // [rows, k]
    int64_t logits_stride;
    int64_t n_experts;
    int64_t k;
    bool normalised;      // weights are divided by their sum
};

// The same by sigmoid(logit), with what DeepSeek-V3 adds (arXiv 2412.19437).
struct SigmoidRoute {
    Route route;
    const float* correction;  // [n_experts], added to the sigmoid for the choice alone; null: logits choose
    int64_t n_groups;         // experts stand in so many groups of equal size
    int64_t top_groups;       // of which those with the largest sum of their two best stay
    float factor;             // of the weights
};

// One product of all experts of a layer: their packed weights [n, k], one behind another.
struct ExpertWeights {
    const void* weights;
    const void* bias;    // [n_experts, n] or null
    bool in_blocks;      // in `format`; else in the dtype of x
    BlockFormat format;
    int64_t segments;    // as for one product
};

// y[t] = sum over slots j of weights[t, j] * down[e](act(gate_up[e](x[t]) + bias[e])) + bias[e], e = ids[t, j].
struct Experts {
    const void* x;
    const int32_t* ids;         // [rows, k]
    const float* weights;       // [rows, k]
    ExpertWeights gate_up;      // [gate_up_size, size]
    ExpertWeights down;         // [size, inner]
    void* y;
    int64_t x_stride;
    int64_t n_experts;
    int64_t k;
    int64_t size;
    int64_t gate_up_size;       // inner, or twice that where the activation has a gate
    int64_t inner;
    Elementwise activation;
    float c;                    // of the activation
    bool scaled_input;          // weights are factors of the experts' inputs, and not of their outputs
};

}  // namespace headrace
