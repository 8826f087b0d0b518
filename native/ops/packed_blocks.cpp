// Moves in and out of weights in blocks: the same for every ISA level.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <stdexcept>

#include "core/bf16.h"
#include "core/half.h"
#include "core/pool.h"
#include "ops/block_linear.h"

namespace headrace {
namespace {

constexpr int64_t chunk_values = 1 << 14;

// Where the numbers and the scales of one output are, within a block.
struct Lane {
    const BlockFormat& format;
    int64_t lane;

    int64_t number_at(int64_t unit) const {
        if (format.codes == Codes::e4m3) return unit * panel_outputs * block_unit_values + lane;
        return (format.bits == 8 ? unit : unit / 2) * panel_outputs * block_unit_values + lane * block_unit_values;
    }
    // Between a unit's neighbours.
    int64_t step() const { return format.codes == Codes::e4m3 ? panel_outputs : 1; }
    int64_t scale_size() const { return format.has_wide_scales ? 4 : 2; }
    int64_t scale_at(int64_t group) const {
        return number_bytes(format.bits) + (group * panel_outputs + lane) * scale_size();
    }
    int64_t minimum_at(int64_t group) const { return scale_at(group) + scale_bytes(format); }
};

char* block_at(void* weight, int64_t output, int64_t k, const BlockFormat& format, int64_t block) {
    return static_cast<char*>(weight) + output / panel_outputs * panel_bytes(k, format) + block * block_bytes(format);
}

float read_scale(const char* p, const BlockFormat& format) {
    if (format.has_wide_scales) {
        float wide;
        std::memcpy(&wide, p, 4);
        return wide;
    }
    half narrow;
    std::memcpy(&narrow, p, 2);
    return to_float(narrow);
}

// Of a number in memory: what the scale is multiplied with.
float value_of(int64_t number, const BlockFormat& format) {
    if (format.codes == Codes::whole) return float(number - format.offset);
    const bool is_small = format.codes == Codes::e2m1;
    const int64_t mantissa_bits = is_small ? 1 : 3, sign = is_small ? number >> 3 : number >> 7;
    const int64_t exponent = number >> mantissa_bits & (is_small ? 3 : 15), mantissa = number & ((1 << mantissa_bits) - 1);
    const int64_t fraction = exponent ? mantissa | (1 << mantissa_bits) : mantissa;
    // Twice the value of e2m1.
    const int shift = int(exponent ? exponent - 1 : 0) - (is_small ? 0 : 9);
    const float size = std::ldexp(float(fraction), shift);
    return sign ? -size : size;
}

void halve(char* p) {
    float wide;
    std::memcpy(&wide, p, 4);
    wide *= 0.5f;
    std::memcpy(p, &wide, 4);
}

template <class T>
void look_up(const BlockEmbedding& job, int64_t id, T* y) {
    const Lane lane{job.format, id % panel_outputs};
    const int64_t shift_bits = job.format.bits == 8 ? 0 : 4, mask = job.format.bits == 8 ? 255 : 15;
    for (int64_t i = 0; i < job.k; ++i) {
        const char* block = block_at(const_cast<void*>(job.weight), id, job.k, job.format, i / block_values);
        const int64_t within = i % block_values, unit = within / block_unit_values, group = within / job.format.group;
        const int64_t byte = uint8_t(block[lane.number_at(unit) + within % block_unit_values * lane.step()]);
        const int64_t number = (unit % 2 ? byte >> shift_bits : byte) & mask;
        const float product = value_of(number, job.format) * read_scale(block + lane.scale_at(group), job.format);
        const float least = job.format.has_minimum ? read_scale(block + lane.minimum_at(group), job.format) : 0.0f;
        y[i] = converted<T>(job.format.has_minimum ? product + least : product);
    }
}

void pack_row(const PackBlocks& job, int64_t row) {
    const Lane lane{job.format, (job.first_row + row) % panel_outputs};
    const uint8_t* numbers = job.numbers + row * job.k;
    const int64_t groups = (job.k + job.format.group - 1) / job.format.group, size = lane.scale_size();
    const char* scales = static_cast<const char*>(job.scales) + row * groups * size;
    const char* minima = static_cast<const char*>(job.minima) + (job.minima ? row * groups * size : 0);
    for (int64_t block = 0; block < blocks_of(job.k); ++block) {
        char* to = block_at(job.weight, job.first_row + row, job.k, job.format, block);
        uint8_t values[block_values] = {};
        const int64_t n = std::min(block_values, job.k - block * block_values);
        std::memcpy(values, numbers + block * block_values, size_t(n));
        if (job.format.codes == Codes::e4m3) {
            for (int64_t i = 0; i < block_values; ++i) to[i * panel_outputs + lane.lane] = char(values[i]);
        } else if (job.format.bits == 8) {
            for (int64_t unit = 0; unit < block_units; ++unit) std::memcpy(to + lane.number_at(unit), values + unit * 4, 4);
        } else {
            for (int64_t unit = 0; unit < block_units; unit += 2)
                for (int64_t i = 0; i < block_unit_values; ++i)
                    to[lane.number_at(unit) + i] = char((values[unit * 4 + i] & 15) | (values[unit * 4 + 4 + i] << 4));
        }
        for (int64_t group = 0; group < block_values / job.format.group; ++group) {
            const int64_t from = block * (block_values / job.format.group) + group;
            if (from >= groups) break;
            std::memcpy(to + lane.scale_at(group), scales + from * size, size_t(size));
            if (job.format.codes == Codes::e2m1) halve(to + lane.scale_at(group));
            if (job.format.has_minimum) std::memcpy(to + lane.minimum_at(group), minima + from * size, size_t(size));
        }
    }
}

}  // namespace

void run(const BlockEmbedding& job, Dtype dtype, int64_t n_rows) {
    check(job.format);
    for (int64_t row = 0; row < n_rows; ++row)
        if (job.ids[row] < 0 || job.ids[row] >= job.n) throw std::out_of_range("an id is outside the embedding's table");
    const int64_t rows = std::max<int64_t>(1, chunk_values / 8 / job.k);
    Pool::instance().each((n_rows + rows - 1) / rows, [&](int64_t chunk, int) {
        for (int64_t row = chunk * rows; row < std::min(n_rows, (chunk + 1) * rows); ++row) {
            if (dtype == Dtype::f32)
                look_up(job, job.ids[row], static_cast<float*>(job.y) + row * job.y_stride);
            else
                look_up(job, job.ids[row], static_cast<bf16*>(job.y) + row * job.y_stride);
        }
    });
}

void run(const PackBlocks& job, int64_t n_rows) {
    check(job.format);
    if (n_rows == 0) return;
    const int64_t last_row = job.first_row + n_rows, first_panel = job.first_row / panel_outputs;
    // A panel a chunk: two threads never write the same one.
    Pool::instance().each(panels_of(last_row) - first_panel, [&](int64_t chunk, int) {
        const int64_t panel = first_panel + chunk;
        const int64_t first = std::max(job.first_row, panel * panel_outputs);
        const int64_t last = std::min(last_row, (panel + 1) * panel_outputs);
        for (int64_t row = first; row < last; ++row) pack_row(job, row - job.first_row);
    });
}

}  // namespace headrace
