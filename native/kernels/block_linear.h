// Products of rows with a weight in blocks. `block_linear_args.h` defines them to the bit.
#pragma once

#include "kernels/block_rows.h"
#include "kernels/linear.h"
#include "simd/codes.h"
#include "simd/int8.h"

namespace headrace {
namespace {

// A format as the kernels are made for it.
template <int bits_, int group_, bool has_minimum_, bool has_wide_scales_, Codes codes_ = Codes::whole>
struct Form {
    static constexpr int bits = bits_;
    static constexpr int groups = int(block_values) / group_;
    static constexpr bool has_minimum = has_minimum_;
    static constexpr BlockFormat format = {bits_, 0, group_, has_minimum_, has_wide_scales_, codes_};

    static Vec load_scales(const char* p, int v) {
        if constexpr (has_wide_scales_)
            return Vec::load(reinterpret_cast<const float*>(p) + v * Vec::lanes);
        else
            return load_halves(reinterpret_cast<const half*>(p) + v * Vec::lanes);
    }
};

template <int bits, int rows>
inline __attribute__((always_inline)) void add_unit(const Bytes (&w)[panel_vecs], const char* x,
                                                    Sums (&sums)[rows][panel_vecs]) {
#pragma GCC unroll 16
    for (int r = 0; r < rows; ++r) {
        int32_t four;
        std::memcpy(&four, x + r * 4, 4);
#pragma GCC unroll 8
        for (int v = 0; v < panel_vecs; ++v) sums[r][v].template add_products<bits>(w[v], four);
    }
}

// The whole sums of units [first, last) of a block.
template <class F, int rows>
inline __attribute__((always_inline)) void add_units(const char* w, const char* x, int first, int last,
                                                     Sums (&sums)[rows][panel_vecs]) {
    constexpr int64_t line = panel_outputs * 4, x_unit = rows * 4;
    Bytes part[panel_vecs];
    if constexpr (F::bits == 8) {
#pragma GCC unroll 8
        for (int unit = first; unit < last; ++unit) {
#pragma GCC unroll 8
            for (int v = 0; v < panel_vecs; ++v) part[v] = Bytes::load(w + unit * line + v * Vec::lanes * 4);
            add_unit<8>(part, x + unit * x_unit, sums);
        }
    } else {
#pragma GCC unroll 4
        for (int unit = first; unit < last; unit += 2) {
            Bytes low[panel_vecs];
#pragma GCC unroll 8
            for (int v = 0; v < panel_vecs; ++v) {
                part[v] = Bytes::load(w + unit / 2 * line + v * Vec::lanes * 4);
                low[v] = part[v].low_halves();
                part[v] = part[v].high_halves();
                if constexpr (F::format.codes == Codes::e2m1) low[v] = e2m1_numbers(low[v]), part[v] = e2m1_numbers(part[v]);
            }
            add_unit<4>(low, x + unit * x_unit, sums);
            add_unit<4>(part, x + (unit + 1) * x_unit, sums);
        }
    }
}

// Totals of a tile over some blocks. Apart from their place in memory, or GCC writes each of them there after every block.
template <int rows>
struct Totals {
    Vec v[rows][panel_vecs];

    Totals() {
#pragma GCC unroll 16
        for (int r = 0; r < rows; ++r)
#pragma GCC unroll 8
            for (int i = 0; i < panel_vecs; ++i) v[r][i] = Vec::zero();
    }
    void store(float* to) const {
#pragma GCC unroll 16
        for (int r = 0; r < rows; ++r)
#pragma GCC unroll 8
            for (int i = 0; i < panel_vecs; ++i) v[r][i].store(to + r * panel_outputs + i * Vec::lanes);
    }
};

// What goes with one block.
template <int rows, int64_t stride>
inline __attribute__((always_inline)) void fetch_block(Ahead& ahead) {
    if (ahead.step == stride) {
        prefetch<rows>(ahead.from, stride);  // unrolled
    } else {
        prefetch<rows>(ahead.from, ahead.step);
        prefetch<rows>(ahead.later, ahead.later_step);
    }
    ahead = ahead.after(1);
}

// The sums of `blocks` blocks of e4m3 to totals [rows][32].
template <class F, int rows>
void add_float_blocks(const char* w, const char* x, int64_t blocks, Ahead ahead, float* to) {
    constexpr int64_t stride = block_bytes(F::format);
    Totals<rows> totals;
    for (int64_t block = 0; block < blocks; ++block, w += stride, x += rows * x_block_bytes(F::format)) {
        fetch_block<rows, stride>(ahead);
        const float* values = reinterpret_cast<const float*>(x);
        Vec sums[rows][panel_vecs];
#pragma GCC unroll 16
        for (int r = 0; r < rows; ++r)
#pragma GCC unroll 8
            for (int v = 0; v < panel_vecs; ++v) sums[r][v] = Vec::zero();
#pragma GCC unroll 2
        for (int64_t i = 0; i < block_values; ++i)
#pragma GCC unroll 8
            for (int v = 0; v < panel_vecs; ++v) {
                const Vec part = load_e4m3(w + i * panel_outputs + v * Vec::lanes);
#pragma GCC unroll 16
                for (int r = 0; r < rows; ++r) sums[r][v] = Vec::fma(part, Vec::all(values[i * rows + r]), sums[r][v]);
            }
#pragma GCC unroll 8
        for (int v = 0; v < panel_vecs; ++v) {
            const Vec scale = F::load_scales(w + number_bytes(8), v) * Vec::all(0x1p8f);
#pragma GCC unroll 16
            for (int r = 0; r < rows; ++r) totals.v[r][v] = Vec::fma(sums[r][v], scale, totals.v[r][v]);
        }
    }
    totals.store(to);
}

// The sums of `blocks` blocks to totals [rows][32].
template <class F, int rows>
void add_blocks(const char* w, const char* x, int64_t blocks, Ahead ahead, float* to) {
    constexpr int64_t number_part = number_bytes(F::bits), scale_part = scale_bytes(F::format);
    constexpr int64_t group_scales = scale_part / F::groups, stride = block_bytes(F::format);
    Totals<rows> totals;
    for (int64_t block = 0; block < blocks; ++block, w += stride, x += rows * x_block_bytes(F::format)) {
        fetch_block<rows, stride>(ahead);
        const BlockScales* rounded = reinterpret_cast<const BlockScales*>(x + rows * block_values);
#pragma GCC unroll 2
        for (int group = 0; group < F::groups; ++group) {
            // Unrolled, or the sums are kept in memory.
            Sums sums[rows][panel_vecs];
#pragma GCC unroll 16
            for (int r = 0; r < rows; ++r)
#pragma GCC unroll 8
                for (int v = 0; v < panel_vecs; ++v) sums[r][v] = Sums::all(rounded[r].start[group]);
            constexpr int units = int(block_units) / F::groups;
            add_units<F>(w, x, group * units, group * units + units, sums);
            const char* scales = w + number_part + group * group_scales;
#pragma GCC unroll 8
            for (int v = 0; v < panel_vecs; ++v) {
                const Vec scale = F::load_scales(scales, v);
                const Vec minimum = F::has_minimum ? F::load_scales(scales + scale_part, v) : Vec::zero();
#pragma GCC unroll 16
                for (int r = 0; r < rows; ++r) {
                    Vec& total = totals.v[r][v];
                    total = Vec::fma(sums[r][v].to_floats(), scale * Vec::all(rounded[r].scale), total);
                    if constexpr (F::has_minimum) total = Vec::fma(minimum, Vec::all(rounded[r].sums[group]), total);
                }
            }
        }
    }
    totals.store(to);
}

template <int bits, int group, bool has_minimum, bool has_wide_scales, Codes codes = Codes::whole>
struct RoundedForm : Form<bits, group, has_minimum, has_wide_scales, codes> {
    template <int rows>
    static void add(const char* w, const char* x, int64_t blocks, Ahead ahead, float* totals) {
        add_blocks<Form<bits, group, has_minimum, has_wide_scales, codes>, rows>(w, x, blocks, ahead, totals);
    }
};

template <bool has_wide_scales>
struct FloatForm : Form<8, 32, false, has_wide_scales, Codes::e4m3> {
    template <int rows>
    static void add(const char* w, const char* x, int64_t blocks, Ahead ahead, float* totals) {
        add_float_blocks<Form<8, 32, false, has_wide_scales, Codes::e4m3>, rows>(w, x, blocks, ahead, totals);
    }
};

// w and x start at the panel and at the block of rows; totals [rows][32] are written.
template <class F, int rows>
void block_tile(const char* w, const char* x, int64_t blocks, int64_t segments, Ahead ahead, float* totals) {
    if (segments == 1) return F::template add<rows>(w, x, blocks, ahead, totals);
    constexpr int64_t size = rows * panel_outputs;
    alignas(64) float parts[4 * size];
    const int64_t each = blocks / 4, w_step = each * block_bytes(F::format), x_step = each * rows * x_block_bytes(F::format);
    for (int64_t i = 0; i < 4; ++i)
        F::template add<rows>(w + i * w_step, x + i * x_step, each, ahead.after(i * each),
                              parts + i * size);
    for (int64_t i = 0; i < size; i += Vec::lanes) {
        const Vec first = Vec::load(parts + i) + Vec::load(parts + size + i);
        const Vec last = Vec::load(parts + 2 * size + i) + Vec::load(parts + 3 * size + i);
        (first + last).store(totals + i);
    }
}

using BlockTile = void (*)(const char* w, const char* x, int64_t blocks, int64_t segments, Ahead ahead, float* totals);

// The tile of `height` rows, among those of `rows` and less.
template <class F, int rows>
BlockTile block_tile_of(int64_t height) {
    if constexpr (rows > 1)
        return height == rows ? block_tile<F, rows> : block_tile_of<F, rows - 1>(height);
    else
        return block_tile<F, 1>;
}

BlockTile block_tile_of(const BlockFormat& format, int64_t height) {
    constexpr int most = block_tile_rows;
    if (format.codes == Codes::e4m3)
        return format.has_wide_scales ? block_tile_of<FloatForm<true>, most>(height)
                                      : block_tile_of<FloatForm<false>, most>(height);
    if (format.codes == Codes::e2m1)
        return format.group == 16 ? block_tile_of<RoundedForm<4, 16, false, true, Codes::e2m1>, most>(height)
                                  : block_tile_of<RoundedForm<4, 32, false, true, Codes::e2m1>, most>(height);
    const int which = (format.bits == 8 ? 4 : 0) + (format.has_minimum ? 2 : 0) + (format.has_wide_scales ? 1 : 0);
    if (format.group == 16) switch (which) {
            case 1: return block_tile_of<RoundedForm<4, 16, false, true>, most>(height);
            case 3: return block_tile_of<RoundedForm<4, 16, true, true>, most>(height);
            case 5: return block_tile_of<RoundedForm<8, 16, false, true>, most>(height);
            default: return block_tile_of<RoundedForm<8, 16, true, true>, most>(height);
        }
    switch (which) {
        case 0: return block_tile_of<RoundedForm<4, 32, false, false>, most>(height);
        case 1: return block_tile_of<RoundedForm<4, 32, false, true>, most>(height);
        case 2: return block_tile_of<RoundedForm<4, 32, true, false>, most>(height);
        case 3: return block_tile_of<RoundedForm<4, 32, true, true>, most>(height);
        case 4: return block_tile_of<RoundedForm<8, 32, false, false>, most>(height);
        case 5: return block_tile_of<RoundedForm<8, 32, false, true>, most>(height);
        case 6: return block_tile_of<RoundedForm<8, 32, true, false>, most>(height);
        default: return block_tile_of<RoundedForm<8, 32, true, true>, most>(height);
    }
}

template <class T, class Y>
void store_totals(const BlockLinear& job, const float* totals, int64_t rows, Y* y, int64_t panel) {
    for (int64_t first = panel * panel_outputs; first < (panel + 1) * panel_outputs; first += Vec::lanes) {
        const int64_t left = job.n - first;
        if (left <= 0) return;
        const int n = int(left < Vec::lanes ? left : Vec::lanes);
        const Vec bias = job.bias ? Vec::load(static_cast<const T*>(job.bias) + first, n) : Vec::zero();
        for (int64_t r = 0; r < rows; ++r) {
            const Vec sum = Vec::load(totals + r * panel_outputs + first % panel_outputs);
            (job.bias ? sum + bias : sum).store(y + r * job.y_stride + first, n);
        }
    }
}

// As `linear`.
template <class T>
void block_linear(const BlockLinear& job, const void* x_packed, const RowBlocks& blocks, int64_t first_block,
                  int64_t last_block, int64_t first_panel, int64_t last_panel, Later* later) {
    const int64_t units = blocks_of(job.k), unit = block_bytes(job.format), count = last_block - first_block;
    const int64_t row_bytes = units * x_block_bytes(job.format);
    alignas(64) float totals[block_tile_rows * panel_outputs];
    for (int64_t panel = first_panel; panel < last_panel; ++panel) {
        const char* w = static_cast<const char*>(job.weight) + panel * units * unit;
        for (int64_t block = first_block; block < last_block; ++block) {
            const int64_t row = first_row(blocks, block), rows = first_row(blocks, block + 1) - row;
            const Ahead ahead = Ahead::of(w, units, unit, block_units, block - first_block, count, rows, later);
            block_tile_of(job.format, rows)(w, static_cast<const char*>(x_packed) + row * row_bytes, units,
                                            job.segments, ahead, totals);
            if (job.wide)
                store_totals<T>(job, totals, rows, static_cast<float*>(job.y) + row * job.y_stride, panel);
            else
                store_totals<T>(job, totals, rows, static_cast<T*>(job.y) + row * job.y_stride, panel);
        }
    }
}

// Products of bytes in registers alone; returns how many there were, as far as `guard` allows.
int64_t multiply_all_bytes(int64_t turns, float guard) {
    constexpr int ways = 12;
    Sums sums[ways];
    // All three loops are unrolled, or the sums lie in memory and that is what is measured.
#pragma GCC unroll 12
    for (int i = 0; i < ways; ++i) sums[i] = Sums::all(int32_t(guard * float(i)));
    Bytes w = Bytes::all(char(guard * 6.0f));
    const int32_t x = int32_t(guard * 4.0f);
    for (int64_t turn = 0; turn < turns; ++turn) {
        w.hide();  // or what does not depend on the sums is done once
#pragma GCC unroll 12
        for (int i = 0; i < ways; ++i) sums[i].template add_products<4>(w, x);
    }
    float total = 0.0f;
#pragma GCC unroll 12
    for (int i = 0; i < ways; ++i) total += sums[i].to_floats().sum();
    return total == guard + 1.0f ? 0 : turns * ways * Vec::lanes * 4;
}

}  // namespace
}  // namespace headrace
