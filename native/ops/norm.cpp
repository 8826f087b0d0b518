#include "ops/norm.h"

#include <algorithm>

#include "core/isa.h"
#include "core/pool.h"

namespace headrace {
namespace {

constexpr int64_t chunk_values = 1 << 13;

template <class Job>
void in_chunks(void (*kernel)(const Job&, int64_t, int64_t), const Job& job, int64_t row_values, int64_t n_rows) {
    const int64_t rows = std::max<int64_t>(1, chunk_values / row_values);
    Pool::instance().each((n_rows + rows - 1) / rows, [&](int64_t chunk, int) {
        kernel(job, chunk * rows, std::min(n_rows, (chunk + 1) * rows));
    });
}

}  // namespace

void run(const RmsNorm& job, Dtype dtype, int64_t n_rows) {
    in_chunks(dtype == Dtype::f32 ? kernels().rms_norm_f32 : kernels().rms_norm_bf16, job, job.heads * job.size, n_rows);
}

void run(const LayerNorm& job, Dtype dtype, int64_t n_rows) {
    in_chunks(dtype == Dtype::f32 ? kernels().layer_norm_f32 : kernels().layer_norm_bf16, job, job.size, n_rows);
}

}  // namespace headrace
