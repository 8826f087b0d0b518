// What adapters add to a product, each row that of its own adapter.
#pragma once

#include <cstdint>
#include <vector>

#include "core/dtype.h"
#include "kernels/low_rank_args.h"

namespace headrace {

// Adds to columns [first_y, first_y + n): scale * B u, u being outputs [first_u, first_u + rank) of the adapter's A.
struct LowRankPart {
    const void* b;  // packed [n, rank]
    int64_t first_u;
    int64_t rank;
    int64_t first_y;
    int64_t n;
    float scale;
};

// What one adapter adds to one product.
struct LowRankAdapter {
    const void* a = nullptr;  // packed [rank, k], in the dtype of x; null: it adds nothing
    int64_t rank = 0;         // of all parts together
    std::vector<LowRankPart> parts;
};

// The adapters of one product by their number. It keeps its place in memory, so that a recorded job may read it; adapters
// come and go between jobs.
using LowRankTable = std::vector<LowRankAdapter>;

struct LowRank {
    const void* x;
    const int32_t* adapters;  // [rows]; negative: the row is left as it is
    const LowRankTable* table;
    void* y;
    int64_t k;
    int64_t x_stride;
    int64_t y_stride;
};

// Throws std::out_of_range when a row's adapter is not in the table; y is not touched then.
void run(const LowRank& job, Dtype dtype, int64_t n_rows);

}  // namespace headrace
