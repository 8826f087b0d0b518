// Arguments of products with a weight in blocks, and the layout of that weight.
//
// A weight value is (u - offset) * scale + minimum, with u a whole number from 0 on in 4 or 8 bits, and scale and minimum
// those of its group: 16 or 32 neighbours of k. A weight is cut into panels of 32 outputs, a panel into blocks of 32
// values of k, the last one padded. A block holds the numbers u, then the scales of each group, then its minima:
//
//     8 bits: for each unit of 4 values of k in turn, the 32 outputs' 4 bytes of it
//     4 bits: the same for each two units, with the first one in the low halves of the bytes and the second in the high
//     e4m3: for each value of k in turn, the 32 outputs' bytes
//     scales, minima: for each group in turn, one number for each output, as half or float
//
// Numbers may stand for floats, with neither offset nor minimum. e2m1 (4 bits) are whole numbers when doubled, which
// come out of a table, and their scales are float and kept halved; the table's offset makes them unsigned. e4m3 (8 bits)
// are multiplied as floats.
//
// The layout is the same for all ISA levels.
#pragma once

#include <cstdint>

#include "core/dtype.h"
#include "kernels/linear_args.h"

namespace headrace {

constexpr int64_t block_values = 32;
constexpr int64_t block_unit_values = 4;
constexpr int64_t block_units = block_values / block_unit_values;

enum class Codes { whole, e2m1, e4m3 };

struct BlockFormat {
    int bits;           // 4 or 8
    int offset;         // taken from every number
    int group;          // 16 or 32
    bool has_minimum;
    bool has_wide_scales;  // float, else half; groups of 16 have them, and e2m1
    Codes codes = Codes::whole;
};

// Of e2m1: twice the value, and this.
constexpr int e2m1_offset = 12;
static constexpr int offset_of(const BlockFormat& format) {
    return format.codes == Codes::e2m1 ? e2m1_offset : format.offset;
}

static constexpr int64_t blocks_of(int64_t k) { return (k + block_values - 1) / block_values; }
static constexpr int64_t number_bytes(int64_t bits) { return block_values * panel_outputs * bits / 8; }
static constexpr int64_t scale_bytes(const BlockFormat& format) {
    return block_values / format.group * panel_outputs * (format.has_wide_scales ? 4 : 2);
}
static constexpr int64_t block_bytes(const BlockFormat& format) {
    return number_bytes(format.bits) + scale_bytes(format) * (format.has_minimum ? 2 : 1);
}
static constexpr int64_t panel_bytes(int64_t k, const BlockFormat& format) { return blocks_of(k) * block_bytes(format); }

// y = x W^T + bias, row by row. A row of x is rounded block by block to whole numbers q from -127 to 127 times a scale,
// the largest size of the block / 127; sums of q * (u - offset) over a group are whole numbers, too. An output is
//
//     for each block in order, for each group in order:
//         sum = fma(whole sum, weight scale * x scale, sum)
//         sum = fma(minimum, x scale * sum of q, sum)            where there are minima
//
// in fp32, so that its bits are the same at every level. A block of x below 2^-100 counts as zero. Of e4m3 nothing is
// rounded, and an output is
//
//     for each block in order: part = 0
//         for each value of k in order: part = fma(value * 2^-8, x, part)
//         sum = fma(part, scale * 2^8, sum)
//
// With 4 segments the
// blocks of k are cut into quarters that are summed apart and added as (s0 + s1) + (s2 + s3).
struct BlockLinear {
    const void* x;
    const void* weight;
    const void* bias;  // [n] in the dtype of x, or null
    void* y;           // fp32 if `wide`, else the dtype of x
    int64_t k;
    int64_t n;
    int64_t x_stride;
    int64_t y_stride;
    int64_t segments;  // 1, or 4 where k is a multiple of 128
    bool wide;
    BlockFormat format;
};

// A block of a row of x beside its numbers q.
struct BlockScales {
    int32_t start[2];  // what the sums of the two halves begin with: the offset's part, as the level wants it
    float scale;
    float sums[2];     // scale * sum of q, of halves where groups are halves, else of all in the first
    int32_t unused[3];
};

// Of a row of x, packed.
static constexpr int64_t x_block_bytes(const BlockFormat& format) {
    return format.codes == Codes::e4m3 ? block_values * 4 : block_values + int64_t(sizeof(BlockScales));
}

// Rows of the weight as vectors: y[t] = row ids[t], each value the product rounded to fp32, then the sum.
struct BlockEmbedding {
    const int64_t* ids;
    const void* weight;
    void* y;
    int64_t k;
    int64_t n;
    int64_t y_stride;
    BlockFormat format;
};

// Puts rows into their places in a weight.
struct PackBlocks {
    const uint8_t* numbers;  // [rows, k], a byte each
    const void* scales;      // [rows, groups of k], half or float
    const void* minima;      // the same, or null
    void* weight;
    int64_t k;
    int64_t first_row;       // of the weight
    BlockFormat format;
};

}  // namespace headrace
