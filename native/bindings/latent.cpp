#include "ops/latent.h"

#include "bindings/bind.h"
#include "graph/tape.h"

namespace nb = nanobind;

namespace headrace {

void bind_latent(nb::module_& m) {
    m.def(
        "write_latent",
        [](AttentionPlan& plan, uintptr_t latent, uintptr_t rope, uintptr_t cache, int rows, int cache_dtype, int64_t n_rows,
           int64_t latent_stride, int64_t rope_stride, int64_t block_stride, int64_t rank, int64_t rope_dim) {
            submit(WriteLatent{pointer(latent), pointer(rope), pointer(cache), latent_stride, rope_stride, block_stride, rank,
                               rope_dim},
                   n_rows, static_cast<const AttentionPlan*>(&plan), Dtype(rows), Dtype(cache_dtype));
        },
        nb::call_guard<nb::gil_scoped_release>());
    m.def(
        "attend_latent",
        [](AttentionPlan& plan, uintptr_t q, uintptr_t q_rope, uintptr_t cache, uintptr_t y, int rows, int cache_dtype,
           int64_t n_rows, int64_t q_stride, int64_t q_rope_stride, int64_t block_stride, int64_t n_heads, int64_t rank,
           int64_t rope_dim, float scale) {
            submit(LatentAttend{{pointer(q), pointer(cache), pointer(y), nullptr, q_stride, block_stride, n_heads, 1,
                                 rank + rope_dim, rank, scale, 0.0f},
                                pointer(q_rope),
                                q_rope_stride},
                   n_rows, &plan, Dtype(rows), Dtype(cache_dtype));
        },
        nb::call_guard<nb::gil_scoped_release>());
    m.def(
        "per_head",
        [](uintptr_t x, uintptr_t weight, uintptr_t y, int dtype, int64_t n_rows, int64_t x_stride, int64_t n_heads, int64_t k,
           int64_t n) {
            submit(PerHead{pointer(x), pointer(weight), pointer(y), x_stride, n_heads, k, n}, n_rows, Dtype(dtype));
        },
        nb::call_guard<nb::gil_scoped_release>());
}

}  // namespace headrace
