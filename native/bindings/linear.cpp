#include "ops/linear.h"

#include "bindings/bind.h"
#include "graph/tape.h"

namespace nb = nanobind;

namespace headrace {

void bind_linear(nb::module_& m) {
    m.def("packed_bytes", [](int64_t n, int64_t k, int dtype) { return packed_bytes(n, k, Dtype(dtype)); });
    m.def(
        "pack_rows",
        [](uintptr_t rows, uintptr_t weight, int dtype, int64_t n_rows, int64_t k, int64_t row_stride, int64_t first_row) {
            run(PackRows{pointer(rows), pointer(weight), k, row_stride, first_row}, Dtype(dtype), n_rows);
        },
        nb::call_guard<nb::gil_scoped_release>());
    m.def(
        "linear",
        [](uintptr_t x, uintptr_t weight, uintptr_t bias, uintptr_t y, int dtype, int64_t n_rows, int64_t k, int64_t n,
           int64_t x_stride, int64_t y_stride, int64_t segments, bool wide) {
            submit(Linear{pointer(x), pointer(weight), pointer(bias), pointer(y), k, n, x_stride, y_stride, segments, wide},
                   n_rows, Dtype(dtype));
        },
        nb::call_guard<nb::gil_scoped_release>());
    m.def(
        "embedding",
        [](uintptr_t ids, uintptr_t weight, uintptr_t y, int dtype, int64_t n_rows, int64_t k, int64_t n, int64_t y_stride) {
            submit(Embedding{pointer<const int64_t>(ids), pointer(weight), pointer(y), k, n, y_stride}, n_rows, Dtype(dtype));
        },
        nb::call_guard<nb::gil_scoped_release>());
}

}  // namespace headrace
