// What the sampler's kernels are given: one row of logits, and which tokens of it count.
#pragma once

#include <cstdint>

namespace headrace {

// Rows are looked at in blocks of so many tokens; ranges start at multiples of it.
constexpr int64_t sampler_block = 256;

// Logits up to a bucket apart in |y| fall into one bucket: 128 for each octave from 2^-11 to 2^5, ends clamped.
constexpr int64_t n_buckets = 2048;

// A row of logits, and the order its tokens are in. A token's key is 64 bits, its place in the order before its id:
// smaller keys come first. `scaled` rows are ordered by y = (x - top) / temperature, others by x itself.
struct RowView {
    const float* x;
    const float* block_max;  // the largest x of each block
    int64_t size;
    float top;               // the largest x
    float temperature;
    bool scaled;
};

struct Largest {
    float value;
    bool has_nan;
};

// Where a row's noise comes from.
struct Stream {
    uint32_t seed_low, seed_high, position, output_index;
};

struct Winner {
    double wait;
    int64_t token;
};

}  // namespace headrace
