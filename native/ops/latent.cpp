#include "ops/latent.h"

#include <algorithm>
#include <cstdint>
#include <vector>

#include "core/isa.h"
#include "core/pool.h"

namespace headrace {
namespace {

constexpr int64_t write_rows = 16;    // of a chunk
constexpr int64_t tile_heads = 128;   // of all rows of a tile together: their sums stay in the cache
constexpr int64_t rows_together = 64; // of a product of one head

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

}  // namespace

void run(const WriteLatent& job, const AttentionPlan* plan, Dtype rows, Dtype cache, int64_t n_rows) {
    const auto kernel = kernels().latent[int(rows)][int(cache)].write;
    const KvPlaces places = plan->places(n_rows);
    Pool::instance().each(ceil_div(n_rows, write_rows), [&](int64_t chunk, int) {
        kernel(job, places, chunk * write_rows, std::min(n_rows, (chunk + 1) * write_rows));
    });
}

void run(const LatentAttend& job, AttentionPlan* plan, Dtype rows, Dtype cache, int64_t n_rows) {
    LatentAttend here = job;
    // A block is turned for each group: as few as there can be.
    while (here.n_kv_heads < job.n_heads &&
           (job.n_heads % here.n_kv_heads || job.n_heads / here.n_kv_heads * plan->tallest() > tile_heads))
        ++here.n_kv_heads;
    plan->attend(kernels().latent[int(rows)][int(cache)].attend, here, n_rows);
}

void run(const PerHead& job, Dtype dtype, int64_t n_rows) {
    const LinearKernels& table = dtype == Dtype::f32 ? kernels().linear_f32 : kernels().linear_bf16;
    const int64_t item = dtype == Dtype::f32 ? 4 : 2, panels = panels_of(job.n);
    const int64_t row_bytes = units_of(job.k, dtype) * table.x_unit_bytes, across = ceil_div(n_rows, rows_together);
    Pool::instance().each(job.n_heads * across, [&](int64_t chunk, int) {
        thread_local std::vector<char> packed;
        const int64_t head = chunk / across, row = chunk % across * rows_together;
        const RowBlocks blocks = row_blocks(std::min(rows_together, n_rows - row), table.tile_rows);
        const Linear one{static_cast<const char*>(job.x) + (row * job.x_stride + head * job.k) * item,
                         static_cast<const char*>(job.weight) + head * packed_bytes(job.n, job.k, dtype),
                         nullptr,
                         static_cast<char*>(job.y) + (row * job.n_heads + head) * job.n * item,
                         job.k,
                         job.n,
                         job.x_stride,
                         job.n_heads * job.n,
                         1,
                         false};
        packed.resize(size_t(std::max<int64_t>(int64_t(packed.size()), blocks.rows * row_bytes + 64)));
        char* x = reinterpret_cast<char*>((reinterpret_cast<uintptr_t>(packed.data()) + 63) / 64 * 64);
        for (int64_t block = 0; block < blocks.count; ++block)
            table.pack_x(one, first_row(blocks, block), first_row(blocks, block + 1), x + first_row(blocks, block) * row_bytes);
        table.run(one, x, blocks, 0, blocks.count, 0, panels, nullptr);
    });
}

}  // namespace headrace
