#include "ops/norm.h"

#include "bindings/bind.h"
#include "graph/tape.h"

namespace nb = nanobind;

namespace headrace {

void bind_norm(nb::module_& m) {
    m.def(
        "rms_norm",
        [](uintptr_t x, uintptr_t weight, uintptr_t y, int dtype, int64_t n_rows, int64_t size, int64_t heads,
           int64_t x_stride, int64_t weights, float eps, bool plus_one) {
            submit(RmsNorm{pointer(x), pointer(weight), pointer(y), size, heads, x_stride, weights, eps, plus_one}, n_rows,
                   Dtype(dtype));
        },
        nb::call_guard<nb::gil_scoped_release>());
    m.def(
        "layer_norm",
        [](uintptr_t x, uintptr_t weight, uintptr_t bias, uintptr_t y, int dtype, int64_t n_rows, int64_t size,
           int64_t x_stride, float eps, float plus) {
            submit(LayerNorm{pointer(x), pointer(weight), pointer(bias), pointer(y), size, x_stride, eps, plus}, n_rows,
                   Dtype(dtype));
        },
        nb::call_guard<nb::gil_scoped_release>());
}

}  // namespace headrace
