// Products of rows with a packed weight. Every tile runs over all of k, so that each output is one chain of additions in
// the order of k, whatever the height of the tile.
#pragma once

#include "core/transpose.h"
#include "kernels/linear_args.h"
#include "simd/dot.h"

namespace headrace {
namespace {

constexpr int panel_vecs = int(panel_outputs) / Vec::lanes;

constexpr int low_rows = 6;

// Asks for what is read later. Low tiles wait for memory, and want it in the first cache; high tiles compute while it comes,
// and the first cache has their rows of x to keep.
template <int rows>
inline __attribute__((always_inline)) void prefetch(const char* from, int64_t bytes) {
    for (int64_t line = 0; line < bytes; line += 64) __builtin_prefetch(from + line, 0, rows < low_rows ? 3 : 2);
}

// What a tile asks for while it computes, after every unit of its panel: a step of what panels hold, and one of what a
// later job reads.
struct Ahead {
    const char* from;
    const char* later;
    int64_t step;
    int64_t later_step;

    // For block `index` of `count` that pass over the panel at w, of so many units, one after another. A block alone fetches
    // what itself will read soon. Of several the first would wait for memory and the others not ask for any: each fetches
    // its part of the next panel, and of what is read later a line a unit of `lines` lines.
    static Ahead of(const char* w, int64_t units, int64_t unit, int64_t lines, int64_t index, int64_t count, int64_t rows,
                    Later* later) {
        if (count == 1) return {w + (rows < low_rows ? 4096 : 8192), w, unit, 0};
        Ahead ahead{w + units * unit + units * unit * index / count, w, (unit + count - 1) / count, 0};
        if (!later) return ahead;
        int64_t size;
        ahead.later = later->take(units * lines * 64, size);
        ahead.later_step = (size + units - 1) / units;
        return ahead;
    }

    Ahead after(int64_t units) const { return {from + units * step, later + units * later_step, step, later_step}; }
};

// Units [first, last) of one row of x, among `rows`.
template <class D, class T>
void pack_row(const T* x, char* to, int64_t rows, int64_t first, int64_t last) {
    for (int64_t unit = first; unit < last; ++unit) D::put(x + unit * D::values, to + unit * rows * D::x_bytes);
}

// x packed for a block of rows: for each unit of k the values of all its rows, as the level's Dot wants them.
template <class T>
void pack_x(const Linear& job, int64_t first_row, int64_t last_row, void* packed) {
    using D = Dot<T>;
    const int64_t rows = last_row - first_row, units = units_of(job.k, D::dtype), whole = job.k / D::values;
    const T* x = static_cast<const T*>(job.x) + first_row * job.x_stride;
    char* to = static_cast<char*>(packed);
    int64_t turned = 0;  // units that are in place, of all rows
    if constexpr (D::x_bytes == unit_bytes) {
        if (rows == 1) std::memcpy(to, x, size_t(whole * unit_bytes));
        turned = rows == 1 ? whole : rows < 4 ? 0 : whole / 4 * 4;
        const int64_t row_bytes = job.x_stride * int64_t(sizeof(T));
        for (int64_t unit = 0; unit < turned && rows > 1; unit += 4) {
            const char* from = reinterpret_cast<const char*>(x + unit * D::values);
            // The last four rows may overlap the ones before.
            for (int64_t row = 0; row < rows; row += 4) {
                const int64_t start = row + 4 < rows ? row : rows - 4;
                transpose_4x4(from + start * row_bytes, row_bytes, to + (unit * rows + start) * D::x_bytes, rows * D::x_bytes);
            }
        }
    }
    for (int64_t row = 0; row < rows; ++row) {
        const T* values = x + row * job.x_stride;
        pack_row<D>(values, to + row * D::x_bytes, rows, turned, whole);
        if (whole < units) {
            const T last[2] = {values[job.k - 1], T{}};
            D::put(last, to + (whole * rows + row) * D::x_bytes);
        }
    }
}

template <class D, int rows>
struct Tile {
    Vec sums[rows][panel_vecs];

    // Sums from zero over `units` units.
    inline __attribute__((always_inline)) void run(const char* w, const char* x, int64_t units, Ahead ahead) {
        Vec parts[rows][panel_vecs];  // apart, or GCC writes every sum to memory: x might alias it
        for (int r = 0; r < rows; ++r)
            for (int v = 0; v < panel_vecs; ++v) parts[r][v] = Vec::zero();
#pragma GCC unroll 2
        for (int64_t unit = 0; unit < units; ++unit) {
            prefetch<rows>(ahead.from, 64);
            // A step of a whole unit is 2 lines, and goes with nothing else.
            prefetch<rows>(ahead.later_step ? ahead.later : ahead.from + 64, 64);
            ahead = ahead.after(1);
            D::template step<rows, panel_vecs>(w, x, parts);
            w += panel_outputs * unit_bytes;
            x += rows * D::x_bytes;
        }
        for (int r = 0; r < rows; ++r)
            for (int v = 0; v < panel_vecs; ++v) sums[r][v] = parts[r][v];
    }

    void add(const Tile& other) {
        for (int r = 0; r < rows; ++r)
            for (int v = 0; v < panel_vecs; ++v) sums[r][v] = sums[r][v] + other.sums[r][v];
    }

    // w and x start at the panel and at the block of rows.
    inline __attribute__((always_inline)) void run(const char* w, const char* x, int64_t units, int64_t segments,
                                                   Ahead ahead) {
        if (segments == 1) return run(w, x, units, ahead);
        const int64_t each = units / 4, w_step = each * panel_outputs * unit_bytes, x_step = each * rows * D::x_bytes;
        const auto quarter = [&](Tile& tile, int64_t i) {
            tile.run(w + i * w_step, x + i * x_step, each, ahead.after(i * each));
        };
        Tile second;
        quarter(*this, 0);
        quarter(second, 1);
        add(second);
        Tile third;
        quarter(third, 2);
        quarter(second, 3);
        third.add(second);
        add(third);
    }

    template <class T, class Y>
    void store(const Linear& job, Y* y, int64_t panel) const {
        for (int v = 0; v < panel_vecs; ++v) {
            const int64_t column = panel * panel_outputs + v * Vec::lanes, left = job.n - column;
            if (left <= 0) return;
            const int n = int(left < Vec::lanes ? left : Vec::lanes);
            const Vec bias = job.bias ? Vec::load(static_cast<const T*>(job.bias) + column, n) : Vec::zero();
            for (int r = 0; r < rows; ++r)
                (job.bias ? sums[r][v] + bias : sums[r][v]).store(y + r * job.y_stride + column, n);
        }
    }
};

template <class T, int rows>
void tile(const Linear& job, const char* x, int64_t row, int64_t panel, Ahead ahead) {
    using D = Dot<T>;
    Tile<D, rows> sums;
    const char* w = static_cast<const char*>(job.weight) + panel * panel_bytes(job.k, D::dtype);
    sums.run(w, x, units_of(job.k, D::dtype), job.segments, ahead);
    if (job.wide)
        sums.template store<T>(job, static_cast<float*>(job.y) + row * job.y_stride, panel);
    else
        sums.template store<T>(job, static_cast<T*>(job.y) + row * job.y_stride, panel);
}

using TileFunction = void (*)(const Linear&, const char* x, int64_t row, int64_t panel, Ahead ahead);

// The tile of `height` rows, among those of `rows` and less.
template <class T, int rows>
TileFunction tile_of(int64_t height) {
    if constexpr (rows > 1)
        return height == rows ? tile<T, rows> : tile_of<T, rows - 1>(height);
    else
        return tile<T, 1>;
}

// Blocks [first_block, last_block) of rows times panels [first_panel, last_panel). x_packed holds all rows, block by block.
template <class T>
void linear(const Linear& job, const void* x_packed, const RowBlocks& blocks, int64_t first_block, int64_t last_block,
            int64_t first_panel, int64_t last_panel, Later* later) {
    const int64_t row_bytes = units_of(job.k, Dot<T>::dtype) * Dot<T>::x_bytes;
    const int64_t units = units_of(job.k, Dot<T>::dtype), unit = panel_outputs * unit_bytes, count = last_block - first_block;
    for (int64_t panel = first_panel; panel < last_panel; ++panel) {
        const char* w = static_cast<const char*>(job.weight) + panel * units * unit;
        for (int64_t block = first_block; block < last_block; ++block) {
            const int64_t row = first_row(blocks, block), rows = first_row(blocks, block + 1) - row;
            tile_of<T, tile_rows>(rows)(
                job, static_cast<const char*>(x_packed) + row * row_bytes, row, panel,
                Ahead::of(w, units, unit, 1, block - first_block, count, rows, later));
        }
    }
}

}  // namespace
}  // namespace headrace
