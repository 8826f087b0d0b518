#include "ops/low_rank.h"

#include "bindings/bind.h"
#include "graph/tape.h"

namespace nb = nanobind;

namespace headrace {

void bind_low_rank(nb::module_& m) {
    nb::class_<LowRankTable>(m, "LowRankTable")
        .def("__init__", [](LowRankTable* table, size_t n) { new (table) LowRankTable(n); })
        .def("put", [](LowRankTable& table, size_t number, uintptr_t a, int64_t rank) {
            table.at(number) = {pointer(a), rank, {}};
        })
        .def("add_part", [](LowRankTable& table, size_t number, uintptr_t b, int64_t first_u, int64_t rank, int64_t first_y,
                            int64_t n, float scale) {
            table.at(number).parts.push_back({pointer(b), first_u, rank, first_y, n, scale});
        })
        .def("clear", [](LowRankTable& table, size_t number) { table.at(number) = {}; });
    m.def(
        "low_rank",
        [](uintptr_t x, uintptr_t adapters, const LowRankTable& table, uintptr_t y, int dtype, int64_t n_rows, int64_t k,
           int64_t x_stride, int64_t y_stride) {
            submit(LowRank{pointer(x), pointer<const int32_t>(adapters), &table, pointer(y), k, x_stride, y_stride}, n_rows,
                   Dtype(dtype));
        },
        nb::call_guard<nb::gil_scoped_release>());
}

}  // namespace headrace
