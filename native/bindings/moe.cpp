#include "ops/moe.h"

#include "bindings/bind.h"
#include "graph/tape.h"

namespace nb = nanobind;

namespace headrace {

void bind_moe(nb::module_& m) {
    m.def(
        "route",
        [](uintptr_t logits, uintptr_t ids, uintptr_t weights, int64_t n_rows, int64_t logits_stride, int64_t n_experts,
           int64_t k, bool normalised) {
            submit(Route{pointer<const float>(logits), pointer<int32_t>(ids), pointer<float>(weights), logits_stride,
                         n_experts, k, normalised},
                   n_rows);
        },
        nb::call_guard<nb::gil_scoped_release>());
    m.def(
        "sigmoid_route",
        [](uintptr_t logits, uintptr_t correction, uintptr_t ids, uintptr_t weights, int64_t n_rows, int64_t logits_stride,
           int64_t n_experts, int64_t k, bool normalised, int64_t n_groups, int64_t top_groups, float factor) {
            const Route route{pointer<const float>(logits), pointer<int32_t>(ids), pointer<float>(weights), logits_stride,
                              n_experts, k, normalised};
            submit(SigmoidRoute{route, pointer<const float>(correction), n_groups, top_groups, factor}, n_rows);
        },
        nb::call_guard<nb::gil_scoped_release>());
    nb::class_<ExpertWeights>(m, "ExpertWeights");
    m.def("expert_weights", [](uintptr_t weights, uintptr_t bias, int64_t segments) {
        return ExpertWeights{pointer(weights), pointer(bias), false, {}, segments};
    });
    m.def("expert_weights_in_blocks", [](uintptr_t weights, uintptr_t bias, int64_t segments, const BlockFormat& format) {
        return ExpertWeights{pointer(weights), pointer(bias), true, format, segments};
    });
    m.def(
        "experts",
        [](uintptr_t x, uintptr_t ids, uintptr_t weights, const ExpertWeights& gate_up, const ExpertWeights& down, uintptr_t y,
           int dtype, int64_t n_rows, int64_t x_stride, int64_t n_experts, int64_t k, int64_t size, int64_t gate_up_size,
           int64_t inner, int activation, float c, bool scaled_input) {
            submit(Experts{pointer(x), pointer<const int32_t>(ids), pointer<const float>(weights), gate_up, down, pointer(y),
                           x_stride, n_experts, k, size, gate_up_size, inner, Elementwise(activation), c, scaled_input},
                   n_rows, Dtype(dtype));
        },
        nb::call_guard<nb::gil_scoped_release>());
}

}  // namespace headrace
