// Moves in and out of packed weights: bytes only, the same for every ISA level.
#include <algorithm>
#include <cstring>
#include <stdexcept>

#include "core/pool.h"
#include "ops/linear.h"

namespace headrace {
namespace {

constexpr int64_t chunk_values = 1 << 14;
constexpr int64_t panel_unit_bytes = panel_outputs * unit_bytes;

// Where the values of one output begin; the next unit of it is panel_unit_bytes further.
int64_t output_offset(int64_t output, int64_t k, Dtype dtype) {
    return output / panel_outputs * panel_bytes(k, dtype) + output % panel_outputs * unit_bytes;
}

}  // namespace

void run(const Embedding& job, Dtype dtype, int64_t n_rows) {
    for (int64_t row = 0; row < n_rows; ++row)
        if (job.ids[row] < 0 || job.ids[row] >= job.n) throw std::out_of_range("an id is outside the embedding's table");
    const int64_t itemsize = dtype == Dtype::f32 ? 4 : 2, row_bytes = job.k * itemsize;
    const int64_t rows = std::max<int64_t>(1, chunk_values / 8 / job.k);  // reads jump: a value costs a cache line
    Pool::instance().each((n_rows + rows - 1) / rows, [&](int64_t chunk, int) {
        for (int64_t row = chunk * rows; row < std::min(n_rows, (chunk + 1) * rows); ++row) {
            const char* from = static_cast<const char*>(job.weight) + output_offset(job.ids[row], job.k, dtype);
            char* to = static_cast<char*>(job.y) + row * job.y_stride * itemsize;
            int64_t at = 0;
            for (; at + unit_bytes <= row_bytes; at += unit_bytes, from += panel_unit_bytes) std::memcpy(to + at, from, unit_bytes);
            if (at < row_bytes) std::memcpy(to + at, from, size_t(row_bytes - at));
        }
    });
}

void run(const PackRows& job, Dtype dtype, int64_t n_rows) {
    if (n_rows == 0) return;
    const int64_t itemsize = dtype == Dtype::f32 ? 4 : 2, row_bytes = job.k * itemsize;
    const int64_t last_row = job.first_row + n_rows, first_panel = job.first_row / panel_outputs;
    // A panel a chunk: two threads never write the same one.
    Pool::instance().each(panels_of(last_row) - first_panel, [&](int64_t chunk, int) {
        const int64_t panel = first_panel + chunk;
        const int64_t first = std::max(job.first_row, panel * panel_outputs);
        const int64_t last = std::min(last_row, (panel + 1) * panel_outputs);
        constexpr int64_t strip = 64;  // a cache line of every row, so that the lines written stay near
        for (int64_t start = 0; start < row_bytes; start += strip) {
            const int64_t end = std::min(row_bytes, start + strip);
            for (int64_t row = first; row < last; ++row) {
                const char* from = static_cast<const char*>(job.rows) + (row - job.first_row) * job.row_stride * itemsize;
                char* to = static_cast<char*>(job.weight) + output_offset(row, job.k, dtype) + start / unit_bytes * panel_unit_bytes;
                int64_t at = start;
                for (; at + unit_bytes <= end; at += unit_bytes, to += panel_unit_bytes) std::memcpy(to, from + at, unit_bytes);
                if (at < end) std::memcpy(to, from + at, size_t(end - at));
            }
        }
    });
}

}  // namespace headrace
