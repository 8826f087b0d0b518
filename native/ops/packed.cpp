// Moves in and out of packed weights: bytes only, the same for every ISA level.
#include <algorithm>
#include <cstring>
#include <stdexcept>

#include "core/pool.h"
#include "core/transpose.h"
#include "ops/linear.h"

namespace headrace {
namespace {

constexpr int64_t chunk_values = 1 << 14;
constexpr int64_t panel_unit_bytes = panel_outputs * unit_bytes;

// Where the values of one output begin; the next unit of it is panel_unit_bytes further.
int64_t output_offset(int64_t output, int64_t k, Dtype dtype) {
    return output / panel_outputs * panel_bytes(k, dtype) + output % panel_outputs * unit_bytes;
}

// Bytes [start, end) of one row into its panel.
void pack_row(const char* from, char* to, int64_t start, int64_t end) {
    int64_t at = start;
    for (; at + unit_bytes <= end; at += unit_bytes) std::memcpy(to + at / unit_bytes * panel_unit_bytes, from + at, unit_bytes);
    if (at < end) std::memcpy(to + at / unit_bytes * panel_unit_bytes, from + at, size_t(end - at));
}

// Rows [first, last) of one panel.
void pack(const PackRows& job, Dtype dtype, int64_t first, int64_t last) {
    const int64_t itemsize = dtype == Dtype::f32 ? 4 : 2, row_bytes = job.k * itemsize, stride = job.row_stride * itemsize;
    const char* from = static_cast<const char*>(job.rows) + (first - job.first_row) * stride;
    char* to = static_cast<char*>(job.weight) + output_offset(first, job.k, dtype);
    constexpr int64_t strip = 64;  // a cache line of every row, so that the lines written stay near
    for (int64_t start = 0; start < row_bytes; start += strip) {
        const int64_t end = std::min(row_bytes, start + strip);
        int64_t row = 0;
        for (; row + 4 <= last - first && end - start == strip; row += 4)
            for (int64_t at = start; at < end; at += 4 * unit_bytes)
                transpose_4x4(from + row * stride + at, stride, to + row * unit_bytes + at / unit_bytes * panel_unit_bytes,
                              panel_unit_bytes);
        for (; row < last - first; ++row) pack_row(from + row * stride, to + row * unit_bytes, start, end);
    }
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
    const int64_t last_row = job.first_row + n_rows;
    // On the caller's thread: a load fills several weights at once, and threads that write to one page of 2 MiB for the
    // first time both clear it.
    for (int64_t panel = job.first_row / panel_outputs; panel < panels_of(last_row); ++panel)
        pack(job, dtype, std::max(job.first_row, panel * panel_outputs), std::min(last_row, (panel + 1) * panel_outputs));
}

}  // namespace headrace
