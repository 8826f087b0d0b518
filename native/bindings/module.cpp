// headrace._native: integer pointers, sizes and strides in, nothing allocated, the GIL released.
#include <nanobind/nanobind.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include "bindings/bind.h"
#include "core/isa.h"
#include "core/pool.h"

namespace nb = nanobind;
using namespace headrace;

NB_MODULE(_native, m) {
    m.doc() = "The native core. Use it through headrace.ops.native.";
    m.attr("interface") = 7;
    m.def("level", [] { return level(); });
    m.def("runnable_levels", &runnable_levels);
    m.def("built_levels", &built_levels);
    m.def("set_threads", [](int n) { Pool::instance().set_threads(n); }, nb::call_guard<nb::gil_scoped_release>());
    m.def("threads", [] { return Pool::instance().threads(); });
    bind_linear(m);
    bind_block_linear(m);
    bind_attention(m);
    bind_latent(m);
    bind_low_rank(m);
    bind_elementwise(m);
    bind_moe(m);
    bind_norm(m);
    bind_recurrent(m);
    bind_roofline(m);
    bind_sampler(m);
    bind_tape(m);
}
