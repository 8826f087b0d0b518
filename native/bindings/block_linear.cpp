#include "ops/block_linear.h"
#include "ops/round_blocks.h"

#include "bindings/bind.h"
#include "graph/tape.h"

namespace nb = nanobind;

namespace headrace {

void bind_block_linear(nb::module_& m) {
    nb::class_<BlockFormat>(m, "BlockFormat")
        .def("__init__",
             [](BlockFormat* made, int bits, int offset, int group, bool has_minimum, bool has_wide_scales, int codes) {
                 const BlockFormat format{bits, offset, group, has_minimum, has_wide_scales, Codes(codes)};
                 check(format);
                 new (made) BlockFormat(format);
             });
    m.def("packed_block_bytes",
          [](int64_t n, int64_t k, const BlockFormat& format) { return panels_of(n) * panel_bytes(k, format); });
    m.def(
        "pack_blocks",
        [](uintptr_t numbers, uintptr_t scales, uintptr_t minima, uintptr_t weight, int64_t n_rows, int64_t k,
           int64_t first_row, const BlockFormat& format) {
            run(PackBlocks{pointer<const uint8_t>(numbers), pointer(scales), pointer(minima), pointer(weight), k, first_row,
                           format},
                n_rows);
        },
        nb::call_guard<nb::gil_scoped_release>());
    m.def(
        "round_blocks",
        [](uintptr_t x, uintptr_t numbers, uintptr_t scales, int dtype, int64_t n_rows, int64_t k, int bits) {
            return run(RoundBlocks{pointer(x), pointer<uint8_t>(numbers), pointer<half>(scales), k, bits}, Dtype(dtype),
                       n_rows);
        },
        nb::call_guard<nb::gil_scoped_release>());
    m.def(
        "block_linear",
        [](uintptr_t x, uintptr_t weight, uintptr_t bias, uintptr_t y, int dtype, int64_t n_rows, int64_t k, int64_t n,
           int64_t x_stride, int64_t y_stride, int64_t segments, bool wide, const BlockFormat& format) {
            submit(BlockLinear{pointer(x), pointer(weight), pointer(bias), pointer(y), k, n, x_stride, y_stride, segments,
                               wide, format},
                   n_rows, Dtype(dtype));
        },
        nb::call_guard<nb::gil_scoped_release>());
    m.def(
        "block_embedding",
        [](uintptr_t ids, uintptr_t weight, uintptr_t y, int dtype, int64_t n_rows, int64_t k, int64_t n, int64_t y_stride,
           const BlockFormat& format) {
            submit(BlockEmbedding{pointer<const int64_t>(ids), pointer(weight), pointer(y), k, n, y_stride, format}, n_rows,
                   Dtype(dtype));
        },
        nb::call_guard<nb::gil_scoped_release>());
}

}  // namespace headrace
