#include "ops/elementwise.h"

#include <algorithm>
#include <cmath>

#include "core/isa.h"
#include "core/pool.h"

namespace headrace {
namespace {

constexpr int64_t chunk_values = 1 << 13;

template <class F>
void in_chunks(int64_t n_rows, int64_t row_values, const F& f) {
    const int64_t rows = std::max<int64_t>(1, chunk_values / std::max<int64_t>(1, row_values));
    Pool::instance().each((n_rows + rows - 1) / rows, [&](int64_t chunk, int) {
        f(chunk * rows, std::min(n_rows, (chunk + 1) * rows));
    });
}

}  // namespace

void run(const ElementwiseRows& job, Elementwise kind, Dtype dtype, int64_t n_rows) {
    const auto kernel = kernels().elementwise[int(kind)][int(dtype)];
    in_chunks(n_rows, job.size, [&](int64_t first, int64_t last) { kernel(job, first, last); });
}

void run(const PositionScale& job, Dtype dtype, int64_t n_rows) {
    const auto kernel = dtype == Dtype::f32 ? kernels().position_scale_f32 : kernels().position_scale_bf16;
    in_chunks(n_rows, job.size, [&](int64_t first, int64_t last) { kernel(job, first, last); });
}

void run(const RopeAngles& job, int64_t n_rows) {
    // The C library's cosine is the same at every level, and a step needs few.
    in_chunks(n_rows, 32 * job.half, [&](int64_t first, int64_t last) {
        for (int64_t row = first; row < last; ++row) {
            float* to = job.angles + row * 2 * job.half;
            for (int64_t i = 0; i < job.half; ++i) {
                const float angle = float(job.positions[row]) * job.inv_freq[i];
                to[i] = std::cos(angle) * job.factor;
                to[job.half + i] = std::sin(angle) * job.factor;
            }
        }
    });
}

void run(const Rope& job, Dtype dtype, int64_t n_rows) {
    const auto kernel = dtype == Dtype::f32 ? kernels().rope_f32 : kernels().rope_bf16;
    in_chunks(n_rows, job.heads * job.head_dim, [&](int64_t first, int64_t last) { kernel(job, first, last); });
}

}  // namespace headrace
