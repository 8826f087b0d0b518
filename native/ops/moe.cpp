#include "ops/moe.h"

#include <algorithm>
#include <stdexcept>

#include "core/isa.h"
#include "core/pool.h"
#include "core/scratch.h"
#include "ops/block_linear.h"

namespace headrace {
namespace {

constexpr int64_t chunk_bytes = 32 << 10;    // of weights, as for one product (linear.cpp)
constexpr int64_t x_range_bytes = 1 << 20;   // of one expert's rows: stays in the outer caches while panels pass over it
constexpr int64_t chunks_per_thread = 8;
constexpr int64_t alone_bytes = 64 << 10;    // of small work: below this, waking the others takes longer
constexpr int64_t pass_bytes = 64 << 20;     // of scratch for one pass over rows

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
int64_t size_of(Dtype dtype) { return dtype == Dtype::f32 ? 4 : 2; }

// f(first, last) over [0, n), of `bytes` each: cut for the pool where that is worth it.
template <class F>
void in_ranges(int64_t n, int64_t bytes, const F& f) {
    if (n * bytes <= alone_bytes) return f(int64_t(0), n);
    const int64_t each = std::max<int64_t>(1, alone_bytes / 4 / std::max<int64_t>(1, bytes));
    Pool::instance().each(ceil_div(n, each), [&](int64_t chunk, int) { f(chunk * each, std::min(n, (chunk + 1) * each)); });
}

// The slots that go to one expert, one behind another, and how its product is cut.
struct Group {
    int64_t expert;
    int64_t first;        // of its places
    RowBlocks blocks;
    int64_t first_block;  // of all groups' blocks
    int64_t first_chunk;  // of all groups' chunks
    int64_t width;        // panels of a chunk
    int64_t across;       // chunks side by side
    int64_t down;         // ranges of blocks
};

// Puts slots of the same expert side by side: by expert, then by slot.
int64_t sort_slots(const Experts& job, int64_t n_slots, int32_t* order, int32_t* places, int32_t* starts, Group* groups) {
    std::fill_n(starts, job.n_experts + 1, 0);
    for (int64_t slot = 0; slot < n_slots; ++slot) ++starts[job.ids[slot] + 1];
    int64_t n_groups = 0;
    for (int64_t expert = 0; expert < job.n_experts; ++expert) {
        if (starts[expert + 1]) groups[n_groups++] = {expert, starts[expert], {starts[expert + 1], 0}, 0, 0, 0, 0, 0};
        starts[expert + 1] += starts[expert];
    }
    for (int64_t slot = 0; slot < n_slots; ++slot) {
        places[slot] = starts[job.ids[slot]]++;
        order[places[slot]] = int32_t(slot);
    }
    return n_groups;
}

// What the two kinds of products call alike by other names.
const LinearKernels& kernels_of(const Linear&, Dtype dtype) {
    return dtype == Dtype::f32 ? kernels().linear_f32 : kernels().linear_bf16;
}
const BlockLinearKernels& kernels_of(const BlockLinear&, Dtype dtype) {
    return dtype == Dtype::f32 ? kernels().block_linear_f32 : kernels().block_linear_bf16;
}
int64_t panel_bytes_of(const Linear& job, Dtype dtype) { return panel_bytes(job.k, dtype); }
int64_t panel_bytes_of(const BlockLinear& job, Dtype) { return panel_bytes(job.k, job.format); }
int64_t x_row_bytes(const Linear& job, Dtype dtype) { return units_of(job.k, dtype) * kernels_of(job, dtype).x_unit_bytes; }
int64_t x_row_bytes(const BlockLinear& job, Dtype) { return blocks_of(job.k) * x_block_bytes(job.format); }

// One product for each group: rows of `job.x` and `job.y` are places, `job.weight` and `job.bias` those of expert 0.
template <class Job>
void run_groups(const Job& job, Dtype dtype, Group* groups, int64_t n_groups, char* packed) {
    const auto& table = kernels_of(job, dtype);
    const int64_t row_bytes = x_row_bytes(job, dtype), item = size_of(dtype);
    const int64_t panels = panels_of(job.n), one_panel = panel_bytes_of(job, dtype);
    const int64_t wanted = ceil_div(chunks_per_thread * Pool::instance().threads(), n_groups);
    int64_t n_blocks = 0, n_chunks = 0, n_rows = 0;
    for (Group* group = groups; group < groups + n_groups; ++group) {
        RowBlocks& blocks = group->blocks;
        blocks = row_blocks(blocks.rows, table.tile_rows);
        group->width = std::max<int64_t>(1, std::min(ceil_div(chunk_bytes, one_panel * blocks.count), panels / wanted));
        group->across = ceil_div(panels, group->width);
        const int64_t by_cache = ceil_div(blocks.rows * row_bytes, x_range_bytes), by_threads = ceil_div(wanted, group->across);
        group->down = std::min(blocks.count, std::max(by_cache, by_threads));
        group->first_block = n_blocks;
        group->first_chunk = n_chunks;
        n_rows += blocks.rows;
        n_blocks += blocks.count;
        n_chunks += group->across * group->down;
    }
    const auto part = [&](const Group& group) {
        Job mine = job;
        mine.x = static_cast<const char*>(job.x) + group.first * job.x_stride * item;
        mine.weight = static_cast<const char*>(job.weight) + group.expert * panels * one_panel;
        mine.bias = job.bias ? static_cast<const char*>(job.bias) + group.expert * job.n * item : nullptr;
        mine.y = static_cast<char*>(job.y) + group.first * job.y_stride * (job.wide ? 4 : item);
        return mine;
    };
    in_ranges(n_blocks, ceil_div(n_rows, n_blocks) * row_bytes, [&](int64_t first, int64_t last) {
        const Group* group = std::upper_bound(groups, groups + n_groups, first,
                                              [](int64_t block, const Group& g) { return block < g.first_block; }) - 1;
        for (int64_t index = first; index < last; ++index) {
            if (index == group->first_block + group->blocks.count) ++group;
            const int64_t block = index - group->first_block, row = first_row(group->blocks, block);
            table.pack_x(part(*group), row, first_row(group->blocks, block + 1), packed + (group->first + row) * row_bytes);
        }
    });
    Pool::instance().each(n_chunks, [&](int64_t index, int) {
        const Group& group = *(std::upper_bound(groups, groups + n_groups, index,
                                                [](int64_t chunk, const Group& g) { return chunk < g.first_chunk; }) - 1);
        const int64_t chunk = index - group.first_chunk, range = chunk / group.across;
        const int64_t panel = chunk % group.across * group.width, count = group.blocks.count;
        table.run(part(group), packed + group.first * row_bytes, group.blocks, count * range / group.down,
                  count * (range + 1) / group.down, panel, std::min(panels, panel + group.width), nullptr);
    });
}

// Rows x [places, k] to y [places, n], which is fp32 if `wide`.
void product(const ExpertWeights& w, Dtype dtype, const void* x, int64_t k, void* y, int64_t n, bool wide, Group* groups,
             int64_t n_groups, char* packed) {
    if (w.in_blocks)
        run_groups(BlockLinear{x, w.weights, w.bias, y, k, n, k, n, w.segments, wide, w.format}, dtype, groups, n_groups, packed);
    else
        run_groups(Linear{x, w.weights, w.bias, y, k, n, k, n, w.segments, wide}, dtype, groups, n_groups, packed);
}

int64_t packed_row_bytes(const ExpertWeights& w, Dtype dtype, int64_t k) {
    Linear dense{};
    BlockLinear blocks{};
    dense.k = blocks.k = k;
    blocks.format = w.format;
    return w.in_blocks ? x_row_bytes(blocks, dtype) : x_row_bytes(dense, dtype);
}

// What a slot takes of scratch; the two products take turns with the packed rows.
struct Room {
    int64_t packed, x, gate_up, inner, outputs;

    Room(const Experts& job, Dtype dtype)
        : packed(std::max(packed_row_bytes(job.gate_up, dtype, job.size), packed_row_bytes(job.down, dtype, job.inner))),
          x(job.size * size_of(dtype)),
          gate_up(job.gate_up_size * size_of(dtype)),
          inner(job.inner * size_of(dtype)),
          outputs(job.size * 4) {}

    int64_t sum() const { return packed + x + gate_up + inner + outputs + 8; }
};

void run_pass(const Experts& job, Dtype dtype, int64_t n_rows, const Room& room) {
    const MoeKernels& table = dtype == Dtype::f32 ? kernels().moe_f32 : kernels().moe_bf16;
    const int64_t slots = n_rows * job.k;
    Parts memory(slots * room.sum() + (job.n_experts + 1) * int64_t(4 + sizeof(Group)) + 64 * 9);
    int32_t* order = memory.take<int32_t>(slots);
    int32_t* places = memory.take<int32_t>(slots);
    int32_t* starts = memory.take<int32_t>(job.n_experts + 1);
    Group* groups = memory.take<Group>(job.n_experts);
    char* packed = memory.take(slots * room.packed);
    char* x = memory.take(slots * room.x);
    char* gate_up = memory.take(slots * room.gate_up);
    char* inner = memory.take(slots * room.inner);
    float* outputs = memory.take<float>(slots * job.size);

    const int64_t n_groups = sort_slots(job, slots, order, places, starts, groups);
    in_ranges(slots, room.x, [&](int64_t first, int64_t last) { table.gather(job, order, first, last, x); });
    product(job.gate_up, dtype, x, job.size, gate_up, job.gate_up_size, false, groups, n_groups, packed);
    const ElementwiseRows act{gate_up, nullptr, inner, job.inner, job.gate_up_size, 0, job.inner, job.c};
    const auto activation = kernels().elementwise[int(job.activation)][int(dtype)];
    // A value's exponential takes as long as moving some bytes.
    in_ranges(slots, 8 * job.inner, [&](int64_t first, int64_t last) { activation(act, first, last); });
    product(job.down, dtype, inner, job.inner, outputs, job.size, true, groups, n_groups, packed);
    in_ranges(n_rows, job.k * room.outputs, [&](int64_t first, int64_t last) {
        for (int64_t row = first; row < last; ++row) table.combine(job, outputs, places, row, 0, job.size);
    });
}

// Throws std::invalid_argument for segments that are not whole units, and for a format without kernels.
void check(const ExpertWeights& w, Dtype dtype, int64_t k) {
    if (w.in_blocks) check(w.format);
    const bool divides = w.in_blocks ? k % (4 * block_values) == 0 : units_of(k, dtype) % 4 == 0;
    if (w.segments != 1 && (w.segments != 4 || !divides))
        throw std::invalid_argument("a product has 1 segment, or 4 where its units or blocks of k are a multiple of 4");
}

}  // namespace

void run(const Experts& job, Dtype dtype, int64_t n_rows) {
    check(job.gate_up, dtype, job.size);
    check(job.down, dtype, job.inner);
    for (int64_t slot = 0; slot < n_rows * job.k; ++slot)
        if (job.ids[slot] < 0 || job.ids[slot] >= job.n_experts) throw std::out_of_range("an id is none of the experts");
    const Room room(job, dtype);
    const int64_t most = std::max<int64_t>(1, pass_bytes / (job.k * room.sum()));
    // Of nearly equal size, so that none reads all weights for a few rows.
    const int64_t passes = ceil_div(n_rows, most);
    for (int64_t pass = 0; pass < passes; ++pass) {
        const int64_t first = n_rows * pass / passes, last = n_rows * (pass + 1) / passes;
        Experts mine = job;
        mine.x = static_cast<const char*>(job.x) + first * job.x_stride * size_of(dtype);
        mine.ids += first * job.k;
        mine.weights += first * job.k;
        mine.y = static_cast<char*>(job.y) + first * job.size * size_of(dtype);
        run_pass(mine, dtype, last - first, room);
    }
}

}  // namespace headrace
