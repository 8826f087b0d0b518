#include "ops/linear.h"

#include <algorithm>
#include <stdexcept>

#include "core/isa.h"
#include "core/pool.h"
#include "core/scratch.h"
#include "ops/cut.h"
#include "ops/later.h"

namespace headrace {
namespace {

constexpr int64_t chunk_bytes = 32 << 10;    // of a weight: long enough for the prefetcher, short enough to share out
constexpr int64_t pack_alone_bytes = 64 << 10;  // of x: below this, waking the others takes longer
constexpr int64_t x_range_bytes = 2 << 20;   // of x: stays in the outer caches while all panels pass over it
constexpr int64_t chunks_per_thread = 4;

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

void pack_x(const LinearKernels& kernels, const Linear& job, const RowBlocks& blocks, int64_t row_bytes, char* packed) {
    const auto pack = [&](int64_t block, int) {
        const int64_t row = first_row(blocks, block);
        kernels.pack_x(job, row, first_row(blocks, block + 1), packed + row * row_bytes);
    };
    if (blocks.rows * row_bytes > pack_alone_bytes) return Pool::instance().each(blocks.count, pack);
    for (int64_t block = 0; block < blocks.count; ++block) pack(block, 0);
}

}  // namespace

void run(const Linear& job, Dtype dtype, int64_t n_rows) {
    if (job.segments != 1 && (job.segments != 4 || units_of(job.k, dtype) % 4 != 0))
        throw std::invalid_argument("a product has 1 segment, or 4 where its units of k are a multiple of 4");
    if (n_rows == 0) return;
    const LinearKernels& table = dtype == Dtype::f32 ? kernels().linear_f32 : kernels().linear_bf16;
    const RowBlocks blocks = row_blocks(n_rows, table.tile_rows);
    const int64_t row_bytes = units_of(job.k, dtype) * table.x_unit_bytes;
    char* packed = scratch(n_rows * row_bytes);
    pack_x(table, job, blocks, row_bytes, packed);

    const int64_t panels = panels_of(job.n), wanted = chunks_per_thread * Pool::instance().threads();
    const int64_t by_size = ceil_div(chunk_bytes, panel_bytes(job.k, dtype) * blocks.count);
    const int64_t width = chunk_width(panels, std::min(by_size, panels / wanted), Pool::instance().threads());
    const int64_t across = ceil_div(panels, width);
    // Rows are cut for the cache's sake, and for the threads' where panels are few.
    const int64_t by_cache = ceil_div(n_rows * row_bytes, x_range_bytes), by_threads = ceil_div(wanted, across);
    const int64_t down = std::min(blocks.count, std::max(by_cache, by_threads));
    LaterReads& later = LaterReads::mine();
    Pool::instance().each(across * down, [&](int64_t chunk, int thread) {
        const int64_t part = chunk / across, panel = chunk % across * width;
        table.run(job, packed, blocks, blocks.count * part / down, blocks.count * (part + 1) / down, panel,
                  std::min(panels, panel + width), later.of(thread));
    });
}

}  // namespace headrace
