// Low-rank additions: the tiles of a product, added to rows that lie anywhere.
#pragma once

#include "kernels/linear.h"
#include "kernels/low_rank_args.h"

namespace headrace {
namespace {

template <class T, int rows>
void add_tile(const LowRankAdd& job, const char* u, int64_t place, int64_t panel) {
    using D = Dot<T>;
    Tile<D, rows> sums;
    const char* b = static_cast<const char*>(job.b) + panel * panel_bytes(job.rank, D::dtype);
    sums.run(b, u, units_of(job.rank, D::dtype), Ahead::of(b, 0, panel_outputs * unit_bytes, 0, 0, 1, rows, nullptr));
    const Vec scale = Vec::all(job.scale);
    for (int v = 0; v < panel_vecs; ++v) {
        const int64_t column = panel * panel_outputs + v * Vec::lanes, left = job.n - column;
        if (left <= 0) return;
        const int n = int(left < Vec::lanes ? left : Vec::lanes);
        for (int r = 0; r < rows; ++r) {
            T* y = static_cast<T*>(job.y) + job.rows[place + r] * job.y_stride + column;
            Vec::fma(scale, sums.sums[r][v], Vec::load(y, n)).store(y, n);
        }
    }
}

using AddTile = void (*)(const LowRankAdd&, const char* u, int64_t place, int64_t panel);

template <class T, int rows>
AddTile add_tile_of(int64_t height) {
    if constexpr (rows > 1)
        return height == rows ? add_tile<T, rows> : add_tile_of<T, rows - 1>(height);
    else
        return add_tile<T, 1>;
}

// Blocks [first_block, last_block) of places times panels [first_panel, last_panel). u_packed holds all places, block by
// block, as pack_x makes them.
template <class T>
void low_rank_add(const LowRankAdd& job, const void* u_packed, const RowBlocks& blocks, int64_t first_block,
                  int64_t last_block, int64_t first_panel, int64_t last_panel) {
    const int64_t place_bytes = units_of(job.rank, Dot<T>::dtype) * Dot<T>::x_bytes;
    for (int64_t panel = first_panel; panel < last_panel; ++panel) {
        for (int64_t block = first_block; block < last_block; ++block) {
            const int64_t place = first_row(blocks, block);
            add_tile_of<T, tile_rows>(first_row(blocks, block + 1) - place)(
                job, static_cast<const char*>(u_packed) + place * place_bytes, place, panel);
        }
    }
}

}  // namespace
}  // namespace headrace
