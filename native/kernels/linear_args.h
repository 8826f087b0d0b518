// Arguments of products with a packed weight, and the layout of that weight.
//
// A weight of n outputs and k inputs is cut into panels of 32 outputs. A panel holds, for each unit of k in turn, the 32
// outputs' values of it: a unit is one value in fp32 and a pair of neighbours in bf16, 32 bits either way. What is missing
// in the last panel or the last pair is zero. The layout is the same for all ISA levels.
#pragma once

#include <cstdint>

#include "core/dtype.h"

namespace headrace {

constexpr int64_t panel_outputs = 32;
constexpr int64_t unit_bytes = 4;

// Static: each ISA level has its own.
static constexpr int64_t units_of(int64_t k, Dtype dtype) { return dtype == Dtype::bf16 ? (k + 1) / 2 : k; }
static constexpr int64_t panels_of(int64_t n) { return (n + panel_outputs - 1) / panel_outputs; }
static constexpr int64_t panel_bytes(int64_t k, Dtype dtype) { return units_of(k, dtype) * panel_outputs * unit_bytes; }
static constexpr int64_t packed_bytes(int64_t n, int64_t k, Dtype dtype) { return panels_of(n) * panel_bytes(k, dtype); }

// y = x W^T + bias, row by row. An output is one sum over k in order, in fp32, and is rounded once. With 4 segments, k is
// cut into quarters that are summed apart and added as (s0 + s1) + (s2 + s3).
struct Linear {
    const void* x;
    const void* weight;  // packed, in the dtype of x
    const void* bias;    // [n] in the dtype of x, or null
    void* y;             // fp32 if `wide`, else the dtype of x
    int64_t k;
    int64_t n;
    int64_t x_stride;    // values from a row to the next
    int64_t y_stride;
    int64_t segments;    // 1, or 4 where the units of k are a multiple of 4
    bool wide;
};

// Rows are computed in blocks of nearly equal height, none above `limit`. Where a block starts has no effect on results.
struct RowBlocks {
    int64_t rows;
    int64_t count;
};

static inline RowBlocks row_blocks(int64_t rows, int64_t limit) { return {rows, (rows + limit - 1) / limit}; }
static inline int64_t first_row(const RowBlocks& blocks, int64_t block) { return blocks.rows * block / blocks.count; }

// Memory that a later job will read, for one thread: `bytes` from `base` on in each of some blocks. Products of many rows, which
// compute more than they read, ask for it meanwhile.
struct Later {
    const char* base = nullptr;
    const int32_t* blocks = nullptr;
    int64_t count = 0;   // of blocks
    int64_t stride = 0;  // bytes from a block to the next
    int64_t bytes = 0;
    int64_t block = 0;   // what has not been asked for begins at byte `offset` of this one
    int64_t offset = 0;

    // The next `size` bytes, `most` or less; none in the end.
    const char* take(int64_t most, int64_t& size) {
        if (block >= count) return size = 0, base;
        const char* from = base + blocks[block] * stride + offset;
        size = bytes - offset < most ? bytes - offset : most;
        offset += size;
        if (offset == bytes) offset = 0, ++block;
        return from;
    }
};

// Rows of the packed weight as vectors: y[t] = row ids[t].
struct Embedding {
    const int64_t* ids;
    const void* weight;
    void* y;
    int64_t k;
    int64_t n;
    int64_t y_stride;
};

// Puts rows of a plain matrix into their places in a packed weight.
struct PackRows {
    const void* rows;
    void* weight;
    int64_t k;
    int64_t row_stride;
    int64_t first_row;   // of the weight
};

}  // namespace headrace
