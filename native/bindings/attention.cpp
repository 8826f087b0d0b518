#include "ops/attention.h"

#include "bindings/bind.h"
#include "graph/tape.h"

namespace nb = nanobind;

namespace headrace {

void bind_attention(nb::module_& m) {
    nb::class_<AttentionPlan>(m, "AttentionPlan")
        .def(nb::init<>())
        .def("fill", [](AttentionPlan& plan, uintptr_t query_starts, uintptr_t seq_lens, int64_t n_seqs,
                        uintptr_t block_table, int64_t columns, uintptr_t write_index, int64_t n_writes, int64_t window,
                        int64_t chunk, int64_t n_kv_heads, uintptr_t ranges) {
            plan.fill({pointer<const int64_t>(query_starts), pointer<const int64_t>(seq_lens), n_seqs,
                       pointer<const int32_t>(block_table), columns, pointer<const int64_t>(write_index), n_writes,
                       window, chunk, n_kv_heads, pointer<const KeyRange>(ranges)});
        });
    m.attr("segment_tokens") = segment_tokens;
    m.def(
        "write_kv",
        [](AttentionPlan& plan, uintptr_t k, uintptr_t v, uintptr_t cache, int rows, int cache_dtype, int64_t n_rows,
           int64_t k_stride, int64_t v_stride, int64_t block_stride, int64_t n_kv_heads, int64_t key_dim,
           int64_t value_dim) {
            submit(WriteKv{pointer(k), pointer(v), pointer(cache), k_stride, v_stride, block_stride, n_kv_heads, key_dim,
                           value_dim},
                   n_rows, static_cast<const AttentionPlan*>(&plan), Dtype(rows), Dtype(cache_dtype));
        },
        nb::call_guard<nb::gil_scoped_release>());
    m.def(
        "attend",
        [](AttentionPlan& plan, uintptr_t q, uintptr_t cache, uintptr_t y, uintptr_t sinks, int rows, int cache_dtype,
           int64_t n_rows, int64_t q_stride, int64_t block_stride, int64_t n_heads, int64_t n_kv_heads, int64_t key_dim,
           int64_t value_dim, float scale, float soft_cap) {
            submit(Attend{pointer(q), pointer(cache), pointer(y), pointer(sinks), q_stride, block_stride, n_heads,
                          n_kv_heads, key_dim, value_dim, scale, soft_cap},
                   n_rows, &plan, Dtype(rows), Dtype(cache_dtype));
        },
        nb::call_guard<nb::gil_scoped_release>());
    m.def(
        "add_where_seen",
        [](AttentionPlan& plan, uintptr_t x, uintptr_t other, uintptr_t y, int dtype, int64_t n_rows, int64_t size,
           int64_t x_stride, int64_t other_stride, float c) {
            submit(AddWhereSeen{pointer(x), pointer(other), pointer(y), size, x_stride, other_stride, c}, n_rows,
                   static_cast<const AttentionPlan*>(&plan), Dtype(dtype));
        },
        nb::call_guard<nb::gil_scoped_release>());
}

}  // namespace headrace
