#include "ops/block_linear.h"

#include <algorithm>
#include <stdexcept>

#include "core/isa.h"
#include "core/pool.h"
#include "core/scratch.h"
#include "ops/cut.h"
#include "ops/later.h"

namespace headrace {
namespace {

constexpr int64_t chunk_bytes = 64 << 10;       // of a weight
constexpr int64_t pack_alone_values = 8 << 10;  // of x: below this, waking the others takes longer
constexpr int64_t x_range_bytes = 1 << 20;      // of x: stays in a core's cache while all panels pass over it
constexpr int64_t chunks_per_thread = 4;

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

void pack_x(const BlockLinearKernels& kernels, const BlockLinear& job, const RowBlocks& blocks, char* packed) {
    const int64_t row_bytes = blocks_of(job.k) * x_block_bytes(job.format);
    const auto pack = [&](int64_t block, int) {
        const int64_t row = first_row(blocks, block);
        kernels.pack_x(job, row, first_row(blocks, block + 1), packed + row * row_bytes);
    };
    if (blocks.rows * job.k > pack_alone_values) return Pool::instance().each(blocks.count, pack);
    for (int64_t block = 0; block < blocks.count; ++block) pack(block, 0);
}

}  // namespace

void check(const BlockFormat& format) {
    const bool is_known = (format.bits == 4 || format.bits == 8) && format.offset >= 0 && format.offset <= 128 &&
                          (format.group == 32 || (format.group == 16 && format.has_wide_scales));
    const bool is_whole = format.codes == Codes::whole;
    const bool fits = is_whole || (format.offset == 0 && !format.has_minimum);
    const bool is_e2m1 = format.codes == Codes::e2m1 && format.bits == 4 && format.has_wide_scales;
    const bool is_e4m3 = format.codes == Codes::e4m3 && format.bits == 8 && format.group == block_values;
    if (!is_known || !fits || !(is_whole || is_e2m1 || is_e4m3))
        throw std::invalid_argument("there are no kernels for this format of blocks");
}

void run(const BlockLinear& job, Dtype dtype, int64_t n_rows) {
    check(job.format);
    if (job.segments != 1 && (job.segments != 4 || job.k % (4 * block_values) != 0))
        throw std::invalid_argument("a product has 1 segment, or 4 where k is a multiple of 128");
    if (n_rows == 0) return;
    const BlockLinearKernels& table = dtype == Dtype::f32 ? kernels().block_linear_f32 : kernels().block_linear_bf16;
    const RowBlocks blocks = row_blocks(n_rows, table.tile_rows);
    const int64_t row_bytes = blocks_of(job.k) * x_block_bytes(job.format);
    char* packed = scratch(n_rows * row_bytes);
    pack_x(table, job, blocks, packed);

    const int64_t panels = panels_of(job.n), wanted = chunks_per_thread * Pool::instance().threads();
    const int64_t by_size = ceil_div(chunk_bytes, panel_bytes(job.k, job.format) * blocks.count);
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
