#include "ops/norm.h"

#include "bindings/bind.h"
#include "graph/tape.h"

namespace nb = nanobind;

namespace headrace {

void bind_norm(nb::module_& m) {
    m.def(
        "rms_norm",
        [](uintptr_t x, uintptr_t weight, uintptr_t y, int dtype, int64_t n_rows, int64_t size, int64_t x_stride,
           int64_t y_stride, int64_t heads, float eps, bool plus_one) {
            submit(RmsNorm{pointer(x), pointer(weight), pointer(y), size, x_stride, y_stride, heads, eps, plus_one},
                   n_rows, Dtype(dtype));
        },
        nb::call_guard<nb::gil_scoped_release>());
}

}  // namespace headrace
