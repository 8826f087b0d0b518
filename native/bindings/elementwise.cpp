#include "ops/elementwise.h"

#include "bindings/bind.h"
#include "graph/tape.h"

namespace nb = nanobind;

namespace headrace {

void bind_elementwise(nb::module_& m) {
    m.def(
        "elementwise",
        [](int kind, uintptr_t x, uintptr_t other, uintptr_t y, int dtype, int64_t n_rows, int64_t size, int64_t x_stride,
           int64_t other_stride, int64_t y_stride, float c) {
            submit(ElementwiseRows{pointer(x), pointer(other), pointer(y), size, x_stride, other_stride, y_stride, c}, n_rows,
                   Elementwise(kind), Dtype(dtype));
        },
        nb::call_guard<nb::gil_scoped_release>());
    m.def(
        "position_scale",
        [](uintptr_t x, uintptr_t positions, uintptr_t y, int dtype, int64_t n_rows, int64_t size, int64_t x_stride,
           float floor_scale, float attn_scale) {
            submit(PositionScale{pointer(x), pointer<const int64_t>(positions), pointer(y), size, x_stride, floor_scale,
                                 attn_scale},
                   n_rows, Dtype(dtype));
        },
        nb::call_guard<nb::gil_scoped_release>());
    m.def(
        "rope_angles",
        [](uintptr_t positions, uintptr_t inv_freq, uintptr_t angles, int64_t n_rows, int64_t half, float factor) {
            submit(RopeAngles{pointer<const int64_t>(positions), pointer<const float>(inv_freq), pointer<float>(angles), half,
                              factor},
                   n_rows);
        },
        nb::call_guard<nb::gil_scoped_release>());
    m.def(
        "rope",
        [](uintptr_t x, uintptr_t angles, uintptr_t y, int dtype, int64_t n_rows, int64_t x_stride, int64_t heads,
           int64_t head_dim, int64_t half) {
            submit(Rope{pointer(x), pointer<const float>(angles), pointer(y), x_stride, heads, head_dim, half}, n_rows,
                   Dtype(dtype));
        },
        nb::call_guard<nb::gil_scoped_release>());
}

}  // namespace headrace
