#include "ops/recurrent.h"

#include "bindings/bind.h"
#include "graph/tape.h"

namespace nb = nanobind;

namespace headrace {

void bind_recurrent(nb::module_& m) {
    nb::class_<StatePlan>(m, "StatePlan")
        .def(nb::init<>())
        .def("fill", [](StatePlan& plan, int64_t n_seqs, uintptr_t first_rows, uintptr_t counts, uintptr_t known,
                        uintptr_t starts, uintptr_t first_drafts, uintptr_t block_table, int64_t columns) {
            plan.fill(n_seqs, pointer<const int64_t>(first_rows), pointer<const int64_t>(counts),
                      pointer<const int64_t>(known), pointer<const int64_t>(starts), pointer<const int64_t>(first_drafts),
                      pointer<const int32_t>(block_table), columns);
        });
    m.def(
        "recurrent",
        [](StatePlan& plan, int kind, uintptr_t x, uintptr_t y, uintptr_t drafts, uintptr_t states, uintptr_t conv,
           uintptr_t conv_bias, uintptr_t decay, uintptr_t dt_bias, uintptr_t skip, uintptr_t norm, int dtype,
           int64_t n_rows, int64_t x_stride, int64_t block_stride, int64_t units, int64_t heads, int64_t rows, int64_t cols,
           int64_t taps, float eps, float dt_min, float dt_max) {
            submit(Recurrence{pointer(x), pointer(y), pointer(drafts), pointer<float>(states), pointer<const float>(conv),
                              pointer<const float>(conv_bias), pointer<const float>(decay), pointer<const float>(dt_bias),
                              pointer<const float>(skip), pointer<const float>(norm), x_stride, block_stride, units, heads,
                              rows, cols, taps, eps, dt_min, dt_max},
                   n_rows, &plan, Recurrent(kind), Dtype(dtype));
        },
        nb::call_guard<nb::gil_scoped_release>());
}

}  // namespace headrace
