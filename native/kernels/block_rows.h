// Rows of x, packed for products with a weight in blocks.
#pragma once

#include <cstring>

#include "kernels/block_linear_args.h"
#include "simd/int8.h"

namespace headrace {
namespace {

// Whole blocks of x are loaded at once, the last one with zeros behind what there is of it.
constexpr int x_vecs = int(block_values) / Vec::lanes;
template <class T>
inline __attribute__((always_inline)) void load_block(const T* x, int64_t n, Vec (&values)[x_vecs]) {
    for (int v = 0; v < x_vecs; ++v) {
        const int64_t left = n - v * Vec::lanes;
        values[v] = n >= block_values || left >= Vec::lanes ? Vec::load(x + v * Vec::lanes)
                    : left > 0                              ? Vec::load(x + v * Vec::lanes, int(left))
                                                            : Vec::zero();
    }
}

// Neighbouring blocks of a row, and what is known of each before its values are rounded.
struct BlockSizes {
    static constexpr int64_t most = 16;
    float factors[most];  // from values to numbers
    float scales[most];   // the way back; not a number where a value is not finite
    float sizes[most], odd[most];

    // Of `n` values, most * block_values or less.
    template <class T>
    void find(const T* x, int64_t n) {
        for (int64_t block = 0; block * block_values < n; ++block) {
            Vec values[x_vecs], largest = Vec::zero(), not_finite = Vec::zero();
            load_block(x + block * block_values, n - block * block_values, values);
            for (int v = 0; v < x_vecs; ++v) {
                largest = Vec::max(largest, Vec::max(values[v], Vec::zero() - values[v]));
                not_finite = Vec::fma(values[v], Vec::zero(), not_finite);
            }
            sizes[block] = largest.largest();
            odd[block] = not_finite.sum();
        }
        for (int64_t block = 0; block * block_values < n; ++block) {
            const bool is_zero = !(sizes[block] >= 0x1p-100f) || odd[block] != 0.0f;
            factors[block] = is_zero ? 0.0f : 127.0f / sizes[block];
            scales[block] = odd[block] != 0.0f ? odd[block] : is_zero ? 0.0f : sizes[block] / 127.0f;
        }
    }
};

// Rounds `n` values, with zeros behind them.
template <class T>
inline __attribute__((always_inline)) void round_block(const T* x, int64_t n, float factor, float scale, int level_offset,
                                                       bool in_halves, int8_t (&to)[block_values], BlockScales& scales) {
    alignas(64) float rounded[block_values];
    Vec values[x_vecs], sums[2] = {Vec::zero(), Vec::zero()};  // of halves; whole numbers, so exact
    load_block(x, n, values);
    for (int v = 0; v < x_vecs; ++v) {
        const Vec numbers = factor == 0.0f ? Vec::zero() : Vec::nearest(values[v] * Vec::all(factor));
        sums[v * 2 / x_vecs] = sums[v * 2 / x_vecs] + numbers;
        numbers.store(rounded + v * Vec::lanes);
    }
    for (int64_t i = 0; i < block_values; ++i) to[i] = int8_t(int32_t(rounded[i]));
    const float first = in_halves ? sums[0].sum() : (sums[0] + sums[1]).sum(), second = in_halves ? sums[1].sum() : 0.0f;
    scales.start[0] = level_offset * int32_t(first);
    scales.start[1] = level_offset * int32_t(second);
    scales.scale = scale;
    scales.sums[0] = scale * first;
    scales.sums[1] = scale * second;
}

// x packed for a block of rows: for each block of k, for each unit of it the 4 numbers of all rows, then their scales.
template <class T>
void pack_rounded_x(const BlockLinear& job, int64_t first_row, int64_t last_row, void* packed) {
    constexpr int64_t strip = BlockSizes::most * block_values;
    const int64_t rows = last_row - first_row, x_block = x_block_bytes(job.format);
    const int level_offset = (job.format.bits == 8 ? byte_offset : 0) - offset_of(job.format);
    const bool in_halves = job.format.group < block_values;
    BlockSizes found;
    for (int64_t row = 0; row < rows; ++row) {
        const T* x = static_cast<const T*>(job.x) + (first_row + row) * job.x_stride;
        char* to = static_cast<char*>(packed);
        for (int64_t start = 0; start < job.k; start += strip) {
            const int64_t n = job.k - start < strip ? job.k - start : strip;
            found.find(x + start, n);
            for (int64_t at = 0; at < n; at += block_values, to += rows * x_block) {
                int8_t numbers[block_values];
                round_block(x + start + at, n - at, found.factors[at / block_values], found.scales[at / block_values], level_offset,
                            in_halves, numbers, reinterpret_cast<BlockScales*>(to + rows * block_values)[row]);
                for (int64_t unit = 0; unit < block_units; ++unit)
                    std::memcpy(to + (unit * rows + row) * block_unit_values, numbers + unit * block_unit_values, 4);
            }
        }
    }
}

// x packed for a block of rows: for each value of k, that of all rows.
template <class T>
void pack_plain_x(const BlockLinear& job, int64_t first_row, int64_t last_row, float* packed) {
    const int64_t rows = last_row - first_row, size = blocks_of(job.k) * block_values;
    for (int64_t row = 0; row < rows; ++row) {
        const T* x = static_cast<const T*>(job.x) + (first_row + row) * job.x_stride;
        for (int64_t i = 0; i < job.k; ++i) packed[i * rows + row] = converted<float>(x[i]);
        for (int64_t i = job.k; i < size; ++i) packed[i * rows + row] = 0.0f;
    }
}

template <class T>
void pack_block_x(const BlockLinear& job, int64_t first_row, int64_t last_row, void* packed) {
    if (job.format.codes == Codes::e4m3)
        pack_plain_x<T>(job, first_row, last_row, static_cast<float*>(packed));
    else
        pack_rounded_x<T>(job, first_row, last_row, packed);
}

}  // namespace
}  // namespace headrace
