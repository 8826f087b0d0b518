// Rounding of weights, row by row: a few scales are tried for each block of 32 values. No multiplication is fused with an
// addition here: the bits are those of the reference.
#pragma once

#include "kernels/round_blocks_args.h"

namespace headrace {
namespace {

constexpr int block_vecs = int(block_values) / Vec::lanes;

// Half of the values are added to the other half until one is left.
inline float sum_of_block(Vec (&v)[block_vecs]) {
#pragma GCC unroll 8
    for (int left = block_vecs; left > 1; left /= 2)
        for (int i = 0; i < left / 2; ++i) v[i] = v[i] + v[i + left / 2];
    return v[0].sum();
}

inline float size_of(float x) { return __builtin_fabsf(x); }

// 1 / step, or zero where a step is too small to divide by.
inline float inverse_of(float step) { return size_of(step) >= 0x1p-100f ? 1.0f / step : 0.0f; }

inline Vec clamped(Vec x, float low, float high) { return Vec::min(Vec::max(x, Vec::all(low)), Vec::all(high)); }

struct WeightBlock {
    Vec values[block_vecs];

    float largest_size() const {
        Vec largest = Vec::zero();
#pragma GCC unroll 8
        for (int i = 0; i < block_vecs; ++i) largest = Vec::max(largest, Vec::max(values[i], Vec::zero() - values[i]));
        return largest.largest();
    }

    // Values divided by the step, as whole numbers.
    void numbers(float step, float low, float high, Vec (&found)[block_vecs]) const {
        const bool is_zero = !(size_of(step) >= 0x1p-100f);
#pragma GCC unroll 8
        for (int i = 0; i < block_vecs; ++i)
            found[i] = is_zero ? Vec::zero() : clamped(Vec::nearest(values[i] / Vec::all(step)), low, high);
    }

    // The sum of squares of what rounding with this step loses.
    float error(float step) const {
        const Vec steps = Vec::all(step), inverse = Vec::all(inverse_of(step));
        Vec squares[block_vecs];
#pragma GCC unroll 8
        for (int i = 0; i < block_vecs; ++i) {
            const Vec lost = clamped(Vec::nearest(values[i] * inverse), -8.0f, 7.0f) * steps - values[i];
            squares[i] = lost * lost;
        }
        return sum_of_block(squares);
    }
};

// The first of the values that is so large.
inline float first_of_size(const float* values, float size) {
    int64_t i = 0;
    while (size_of(values[i]) != size) ++i;
    return values[i];
}

// Of several places where the largest value may come to lie the best, and then what is best for the numbers it gives.
inline float step_of_4_bits(const WeightBlock& block, const float* values) {
    const float largest = first_of_size(values, block.largest_size());
    const float places[] = {-9.0f, -8.5f, -8.0f, -7.5f, 7.0f, 7.5f};
    float best = largest / -8.0f, least = __builtin_inff();
    for (const float place : places) {
        const float step = largest / place, error = block.error(step);
        if (error < least) best = step, least = error;
    }
    if (!(size_of(best) >= 0x1p-100f)) return best;
    Vec numbers[block_vecs], products[block_vecs];
    block.numbers(best, -8.0f, 7.0f, numbers);
#pragma GCC unroll 8
    for (int i = 0; i < block_vecs; ++i) {
        products[i] = block.values[i] * numbers[i];
        numbers[i] = numbers[i] * numbers[i];
    }
    const float squares = sum_of_block(numbers);
    return sum_of_block(products) / (squares < 1.0f ? 1.0f : squares);
}

// Returns what is in the way, or zero.
template <class T>
int64_t round_blocks(const RoundBlocks& job, int64_t row) {
    const T* x = static_cast<const T*>(job.x) + row * job.k;
    const int64_t blocks = blocks_of(job.k);
    const float low = job.bits == 8 ? -127.0f : -8.0f, high = job.bits == 8 ? 127.0f : 7.0f;
    const float offset = job.bits == 8 ? 128.0f : 8.0f;
    int64_t faults = 0;
    for (int64_t b = 0; b < blocks; ++b) {
        alignas(64) float values[block_values];
        WeightBlock block;
        Vec odd = Vec::zero();
        for (int i = 0; i < block_vecs; ++i) {
            const int64_t start = b * block_values + i * Vec::lanes, left = job.k - start;
            block.values[i] = left >= Vec::lanes ? Vec::load(x + start)
                              : left > 0         ? Vec::load(x + start, int(left))
                                                 : Vec::zero();
            block.values[i].store(values + i * Vec::lanes);
            odd = Vec::fma(block.values[i], Vec::zero(), odd);  // NaN where a value is not finite
        }
        if (odd.sum() != 0.0f) {
            faults |= not_finite;
            continue;
        }
        const half scale = to_half(job.bits == 8 ? block.largest_size() / 127.0f : step_of_4_bits(block, values));
        if ((scale.bits & 0x7c00u) == 0x7c00u) faults |= too_large;
        Vec numbers[block_vecs];
        block.numbers(to_float(scale), low, high, numbers);
        for (int i = 0; i < block_vecs; ++i) (numbers[i] + Vec::all(offset)).store(values + i * Vec::lanes);
        const int64_t n = job.k - b * block_values < block_values ? job.k - b * block_values : block_values;
        for (int64_t i = 0; i < n; ++i) job.numbers[row * job.k + b * block_values + i] = uint8_t(int32_t(values[i]));
        job.scales[row * blocks + b] = scale;
    }
    return faults;
}

}  // namespace
}  // namespace headrace
