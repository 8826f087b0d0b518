// Included once by each ISA's translation unit, after its simd header. Everything here has internal linkage: a function
// compiled for one level must never be the one that another level's code is linked to. For the same reason kernels use
// nothing of the standard library that is not a plain C function.
#pragma once

#include "kernels/linear.h"
#include "kernels/norm.h"
#include "kernels/roofline.h"
#include "kernels/table.h"

namespace headrace {

const KernelTable& HEADRACE_TABLE() {
    static constexpr KernelTable table = {
        .read_all = read_all,
        .multiply_all_f32 = multiply_all<float>,
        .multiply_all_bf16 = multiply_all<bf16>,
        .linear_f32 = {tile_rows, Dot<float>::x_bytes, pack_x<float>, linear<float>},
        .linear_bf16 = {tile_rows, Dot<bf16>::x_bytes, pack_x<bf16>, linear<bf16>},
        .rms_norm_f32 = rms_norm<float>,
        .rms_norm_bf16 = rms_norm<bf16>,
    };
    return table;
}

}  // namespace headrace
