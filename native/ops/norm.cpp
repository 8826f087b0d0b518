#include "ops/norm.h"

#include <algorithm>

#include "core/isa.h"
#include "core/pool.h"

namespace headrace {
namespace {

constexpr int64_t chunk_values = 1 << 14;

}  // namespace

void run(const RmsNorm& job, Dtype dtype, int64_t n_rows) {
    const auto kernel = dtype == Dtype::f32 ? kernels().rms_norm_f32 : kernels().rms_norm_bf16;
    const int64_t rows = std::max<int64_t>(1, chunk_values / job.size);
    Pool::instance().each((n_rows + rows - 1) / rows, [&](int64_t chunk, int) {
        kernel(job, chunk * rows, std::min(n_rows, (chunk + 1) * rows));
    });
}

}  // namespace headrace
