#include "ops/round_blocks.h"

#include <stdexcept>

#include "core/isa.h"

namespace headrace {

int64_t run(const RoundBlocks& job, Dtype dtype, int64_t n_rows) {
    if (job.bits != 4 && job.bits != 8) throw std::invalid_argument("numbers have 4 or 8 bits");
    const auto kernel = dtype == Dtype::f32 ? kernels().round_blocks_f32 : kernels().round_blocks_bf16;
    int64_t faults = 0;
    for (int64_t row = 0; row < n_rows; ++row) faults |= kernel(job, row);
    return faults;
}

}  // namespace headrace
