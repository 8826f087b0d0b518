// Included once by each ISA's translation unit, after its simd header. Everything here has internal linkage: a function
// compiled for one level must never be the one that another level's code is linked to. For the same reason kernels use
// nothing of the standard library that is not a plain C function.
#pragma once

#include "kernels/norm.h"
#include "kernels/table.h"

namespace headrace {

const KernelTable& HEADRACE_TABLE() {
    static constexpr KernelTable table = {
        .rms_norm_f32 = rms_norm<float>,
        .rms_norm_bf16 = rms_norm<bf16>,
    };
    return table;
}

}  // namespace headrace
