// The kernels of one ISA level. A kernel computes a range of a job on the thread it is called on; native/ops cuts jobs
// into ranges and hands them to the pool.
#pragma once

#include "kernels/norm_args.h"

namespace headrace {

struct KernelTable {
    void (*rms_norm_f32)(const RmsNorm&, int64_t first_row, int64_t last_row);
    void (*rms_norm_bf16)(const RmsNorm&, int64_t first_row, int64_t last_row);
};

const KernelTable& avx2_kernels();
const KernelTable& avx512_kernels();
const KernelTable& neon_kernels();

}  // namespace headrace
