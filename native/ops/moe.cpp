#include "ops/moe.h"

#include <algorithm>
#include <memory>
#include <new>
#include <stdexcept>

#include "core/isa.h"
#include "core/pool.h"

namespace headrace {
namespace {

constexpr int64_t chunk_bytes = 64 << 10;    // of weights, as for one product (linear.cpp)
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

// Memory that only grows, on the thread that runs the job; the pool's threads work in it while that one waits.
struct Memory {
    struct Free {
        void operator()(char* p) const { ::operator delete[](p, std::align_val_t(64)); }
    };
    std::unique_ptr<char, Free> start;
    int64_t size = 0, used = 0;

    void reserve(int64_t bytes) {
        used = 0;
        if (bytes <= size) return;
        start.reset();
        size = 0;
        start.reset(static_cast<char*>(::operator new[](size_t(bytes), std::align_val_t(64))));
        size = bytes;
    }
    static int64_t room(int64_t bytes) { return (bytes + 63) / 64 * 64; }
    template <class T = char>
    T* take(int64_t n) {
        T* p = reinterpret_cast<T*>(start.get() + used);
        used += room(n * int64_t(sizeof(T)));
        return p;
    }
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

// One product for each group: rows of `job.x` and `job.y` are places, `job.weight` and `job.bias` those of expert 0.
void run_groups(const Linear& job, Dtype dtype, Group* groups, int64_t n_groups, char* packed) {
    const LinearKernels& table = dtype == Dtype::f32 ? kernels().linear_f32 : kernels().linear_bf16;
    const int64_t row_bytes = units_of(job.k, dtype) * table.x_unit_bytes, item = size_of(dtype);
    const int64_t panels = panels_of(job.n), one_panel = panel_bytes(job.k, dtype);
    const int64_t wanted = ceil_div(chunks_per_thread * Pool::instance().threads(), n_groups);
    int64_t n_blocks = 0, n_chunks = 0;
    for (Group* group = groups; group < groups + n_groups; ++group) {
        RowBlocks& blocks = group->blocks;
        blocks = row_blocks(blocks.rows, table.tile_rows);
        group->width = std::max<int64_t>(1, std::min(ceil_div(chunk_bytes, one_panel * blocks.count), panels / wanted));
        group->across = ceil_div(panels, group->width);
        const int64_t by_cache = ceil_div(blocks.rows * row_bytes, x_range_bytes), by_threads = ceil_div(wanted, group->across);
        group->down = std::min(blocks.count, std::max(by_cache, by_threads));
        group->first_block = n_blocks;
        group->first_chunk = n_chunks;
        n_blocks += blocks.count;
        n_chunks += group->across * group->down;
    }
    const auto part = [&](const Group& group) {
        Linear mine = job;
        mine.x = static_cast<const char*>(job.x) + group.first * job.x_stride * item;
        mine.weight = static_cast<const char*>(job.weight) + group.expert * panels * one_panel;
        mine.bias = job.bias ? static_cast<const char*>(job.bias) + group.expert * job.n * item : nullptr;
        mine.y = static_cast<char*>(job.y) + group.first * job.y_stride * (job.wide ? 4 : item);
        return mine;
    };
    in_ranges(n_blocks, table.tile_rows * row_bytes, [&](int64_t first, int64_t last) {
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
                  count * (range + 1) / group.down, panel, std::min(panels, panel + group.width));
    });
}

int64_t slot_bytes(const Experts& job, Dtype dtype) {
    const LinearKernels& table = dtype == Dtype::f32 ? kernels().linear_f32 : kernels().linear_bf16;
    const int64_t packed = table.x_unit_bytes * std::max(units_of(job.size, dtype), units_of(job.inner, dtype));
    return packed + size_of(dtype) * (job.size + job.gate_up_size + job.inner) + 4 * job.size + 8;
}

void run_pass(const Experts& job, Dtype dtype, int64_t n_rows, Memory& memory) {
    const MoeKernels& table = dtype == Dtype::f32 ? kernels().moe_f32 : kernels().moe_bf16;
    const LinearKernels& linear = dtype == Dtype::f32 ? kernels().linear_f32 : kernels().linear_bf16;
    const int64_t slots = n_rows * job.k, item = size_of(dtype);
    memory.reserve(slots * slot_bytes(job, dtype) + (job.n_experts + 1) * int64_t(4 + sizeof(Group)) + 64 * 8);
    int32_t* order = memory.take<int32_t>(slots);
    int32_t* places = memory.take<int32_t>(slots);
    int32_t* starts = memory.take<int32_t>(job.n_experts + 1);
    Group* groups = memory.take<Group>(job.n_experts);
    const int64_t widest = std::max(units_of(job.size, dtype), units_of(job.inner, dtype));
    char* packed = memory.take(slots * widest * linear.x_unit_bytes);
    char* x = memory.take(slots * job.size * item);
    char* gate_up = memory.take(slots * job.gate_up_size * item);
    char* inner = memory.take(slots * job.inner * item);
    float* outputs = memory.take<float>(slots * job.size);

    const int64_t n_groups = sort_slots(job, slots, order, places, starts, groups);
    in_ranges(slots, job.size * item, [&](int64_t first, int64_t last) { table.gather(job, order, first, last, x); });
    run_groups({x, job.gate_up, job.gate_up_bias, gate_up, job.size, job.gate_up_size, job.size, job.gate_up_size, 1, false},
               dtype, groups, n_groups, packed);
    const ElementwiseRows act{gate_up, nullptr, inner, job.inner, job.gate_up_size, 0, job.inner, job.c};
    const auto activation = kernels().elementwise[int(job.activation)][int(dtype)];
    // A value's exponential takes as long as moving some bytes.
    in_ranges(slots, 8 * job.inner, [&](int64_t first, int64_t last) { activation(act, first, last); });
    run_groups({inner, job.down, job.down_bias, outputs, job.inner, job.size, job.inner, job.size, job.segments, true}, dtype,
               groups, n_groups, packed);
    in_ranges(n_rows, job.k * job.size * 4, [&](int64_t first, int64_t last) {
        for (int64_t row = first; row < last; ++row) table.combine(job, outputs, places, row, 0, job.size);
    });
}

}  // namespace

void run(const Experts& job, Dtype dtype, int64_t n_rows) {
    if (job.segments != 1 && (job.segments != 4 || units_of(job.inner, dtype) % 4 != 0))
        throw std::invalid_argument("a product has 1 segment, or 4 where its units of k are a multiple of 4");
    for (int64_t slot = 0; slot < n_rows * job.k; ++slot)
        if (job.ids[slot] < 0 || job.ids[slot] >= job.n_experts) throw std::out_of_range("an id is none of the experts");
    thread_local Memory memory;
    const int64_t most = std::max<int64_t>(1, pass_bytes / (job.k * slot_bytes(job, dtype)));
    // Of nearly equal size, so that none reads all weights for a few rows.
    const int64_t passes = ceil_div(n_rows, most);
    for (int64_t pass = 0; pass < passes; ++pass) {
        const int64_t first = n_rows * pass / passes, last = n_rows * (pass + 1) / passes;
        Experts mine = job;
        mine.x = static_cast<const char*>(job.x) + first * job.x_stride * size_of(dtype);
        mine.ids += first * job.k;
        mine.weights += first * job.k;
        mine.y = static_cast<char*>(job.y) + first * job.size * size_of(dtype);
        run_pass(mine, dtype, last - first, memory);
    }
}

}  // namespace headrace
