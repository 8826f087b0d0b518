// Arguments of the recurrences (gated delta rule, Mamba2) with the convolution before them and the gated norm behind.
//
// A layer's state lies in one block of its cache group, all of it floats. Heads that share a key (gated delta rule) or a
// group (Mamba2) are a unit; a unit's share of the block is
//     [taps - 1, channels]   the last inputs of the convolution, oldest first
//     [heads, rows, cols]    the state of each head
// rounded up to 16 floats. Channels of a unit: q, k and the heads' v; or the heads' x, then B and C.
#pragma once

#include <cstdint>

#include "kernels/attention_args.h"

namespace headrace {

enum class Recurrent : int {
    gated_delta = 0,
    mamba2 = 1,
    count = 2,
};

// The rows of one sequence. Those after n_known are drafts: their states are not kept, their inputs are.
struct StateRows {
    int64_t first_row;
    int64_t n_rows;
    int64_t n_known;
    int64_t start;           // position of the first row
    int64_t first_draft;     // place of the first draft's input
    const int32_t* blocks;   // the sequence's row of the block table
};

struct Recurrence {
    const void* x;     // [rows, x_stride]: what the projections gave, see kernels/recurrent.h
    void* y;           // [rows, units * heads * cols], dense; null: only the states are wanted
    void* drafts;      // [drafts, x_stride] inputs of draft rows; null: there are none
    float* states;     // block 0 of the layer
    const float* conv;       // [units, taps, channels]
    const float* conv_bias;  // [units, channels]
    const float* decay;      // [units * heads] -exp(A_log)
    const float* dt_bias;    // [units * heads]
    const float* skip;       // [units * heads] D of Mamba2
    const float* norm;       // [cols] (gated delta rule) or [units * heads * cols] (Mamba2)
    int64_t x_stride;
    int64_t block_stride;  // floats
    int64_t units;
    int64_t heads;  // of a unit
    int64_t rows;   // of a head's state: width of a key, or of B
    int64_t cols;   // width of a value
    int64_t taps;
    float eps;
    float dt_min;  // Mamba2
    float dt_max;
};

static inline int64_t channels_of(const Recurrence& job) { return 2 * job.rows + job.heads * job.cols; }
static inline int64_t tail_floats(const Recurrence& job) { return (job.taps - 1) * channels_of(job); }
static inline int64_t unit_floats(const Recurrence& job) {
    return (tail_floats(job) + job.heads * job.rows * job.cols + 15) / 16 * 16;
}
// Of a thread: a state apart, a row's channels before and after the convolution, and the heads' outputs.
static inline int64_t recurrent_scratch(const Recurrence& job) {
    return unit_floats(job) + 2 * channels_of(job) + job.heads * job.cols + 64;
}

}  // namespace headrace
