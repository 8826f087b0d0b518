#include "ops/low_rank.h"

#include <algorithm>
#include <cstring>
#include <stdexcept>

#include "core/isa.h"
#include "core/pool.h"
#include "core/scratch.h"

namespace headrace {
namespace {

constexpr int64_t chunk_bytes = 32 << 10;  // of B, as for one product (linear.cpp)
constexpr int64_t chunk_blocks = 4;        // of rows
constexpr int64_t pass_bytes = 32 << 20;   // of scratch for one pass over rows

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// The rows of one adapter, side by side.
struct Group {
    const LowRankAdapter* adapter;
    int64_t first;  // of its places
    RowBlocks blocks;
    int64_t first_block;  // of all groups' blocks
    char* u;              // [places, rank]
    char* packed_u;       // part by part
};

// One part of one adapter, and how it is cut: chunks of `width` panels times chunk_blocks blocks.
struct Piece {
    const Group* group;
    const LowRankPart* part;
    const char* u;  // packed
    int64_t first_chunk;
    int64_t width;
    int64_t across;
};

struct Sizes {
    Dtype dtype;
    int64_t item, unit;

    int64_t packed(int64_t k) const { return units_of(k, dtype) * unit; }
};

class Pass {
  public:
    Pass(const LowRank& job, Dtype dtype, int64_t n_rows)
        : job_(job),
          dtype_(dtype),
          table_(dtype == Dtype::f32 ? kernels().linear_f32 : kernels().linear_bf16),
          add_(dtype == Dtype::f32 ? kernels().low_rank_add_f32 : kernels().low_rank_add_bf16),
          sizes_{dtype, dtype == Dtype::f32 ? 4 : 2, table_.x_unit_bytes},
          n_rows_(n_rows) {}

    // Bytes that a row takes at most.
    static int64_t row_bytes(const LowRank& job, const Sizes& sizes) {
        int64_t of_u = 0;
        for (const LowRankAdapter& adapter : *job.table) of_u = std::max(of_u, u_bytes(adapter, sizes));
        return job.k * sizes.item + sizes.packed(job.k) + of_u;
    }

    void run() {
        Parts memory(room());
        sort(memory);
        if (n_groups_ == 0) return;
        x_ = memory.take(n_places_ * job_.k * sizes_.item);
        packed_ = memory.take(n_places_ * sizes_.packed(job_.k));
        const int64_t n_chunks = lay_out(memory);
        Pool::instance().each(n_blocks_, [&](int64_t block, int) { reduce(block); });
        Pool::instance().each(n_chunks, [&](int64_t chunk, int) { expand(chunk); });
    }

  private:
    static int64_t u_bytes(const LowRankAdapter& adapter, const Sizes& sizes) {
        int64_t bytes = adapter.rank * sizes.item;
        for (const LowRankPart& part : adapter.parts) bytes += sizes.packed(part.rank);
        return bytes;
    }

    int64_t room() const {
        const int64_t adapters = int64_t(job_.table->size());
        int64_t pieces = 0;
        for (const LowRankAdapter& adapter : *job_.table) pieces += int64_t(adapter.parts.size());
        const int64_t books = adapters * int64_t(sizeof(Group) + 4) + pieces * int64_t(sizeof(Piece)) + n_rows_ * 4;
        return n_rows_ * row_bytes(job_, sizes_) + books + 64 * (6 + 2 * adapters);
    }

    // Rows by adapter, then by row.
    void sort(Parts& memory) {
        const int64_t adapters = int64_t(job_.table->size());
        order_ = memory.take<int32_t>(n_rows_);
        groups_ = memory.take<Group>(adapters);
        int32_t* next = memory.take<int32_t>(adapters);
        std::fill_n(next, adapters, 0);
        for (int64_t row = 0; row < n_rows_; ++row)
            if (acts(row)) ++next[job_.adapters[row]];
        for (int64_t index = 0; index < adapters; ++index) {
            const int64_t count = next[index];
            next[index] = int32_t(n_places_);
            if (count == 0) continue;
            const RowBlocks blocks = row_blocks(count, table_.tile_rows);
            groups_[n_groups_++] = {&(*job_.table)[size_t(index)], n_places_, blocks, n_blocks_, nullptr, nullptr};
            n_places_ += count;
            n_blocks_ += blocks.count;
        }
        for (int64_t row = 0; row < n_rows_; ++row)
            if (acts(row)) order_[next[job_.adapters[row]]++] = int32_t(row);
    }

    bool acts(int64_t row) const {
        const int32_t adapter = job_.adapters[row];
        return adapter >= 0 && (*job_.table)[size_t(adapter)].a != nullptr;
    }

    // Places of what the groups work in, and the pieces of the second product. Returns the number of their chunks.
    int64_t lay_out(Parts& memory) {
        int64_t n_pieces = 0, n_chunks = 0;
        for (Group* group = groups_; group < groups_ + n_groups_; ++group) n_pieces += int64_t(group->adapter->parts.size());
        pieces_ = memory.take<Piece>(n_pieces);
        for (Group* group = groups_; group < groups_ + n_groups_; ++group) {
            const int64_t places = group->blocks.rows;
            group->u = memory.take(places * group->adapter->rank * sizes_.item);
            int64_t bytes = 0;
            for (const LowRankPart& part : group->adapter->parts) bytes += places * sizes_.packed(part.rank);
            char* packed = group->packed_u = memory.take(bytes);
            for (const LowRankPart& part : group->adapter->parts) {
                const int64_t high = std::min(chunk_blocks, group->blocks.count);
                const int64_t width = std::max<int64_t>(1, chunk_bytes / (high * panel_bytes(part.rank, dtype_)));
                const int64_t across = ceil_div(panels_of(part.n), width);
                pieces_[n_pieces_++] = {group, &part, packed, n_chunks, width, across};
                n_chunks += across * ceil_div(group->blocks.count, chunk_blocks);
                packed += places * sizes_.packed(part.rank);
            }
        }
        return n_chunks;
    }

    // One block of rows: u = A x.
    void reduce(int64_t index) const {
        const Group& group = *(std::upper_bound(groups_, groups_ + n_groups_, index,
                                                [](int64_t block, const Group& g) { return block < g.first_block; }) - 1);
        const LowRankAdapter& adapter = *group.adapter;
        const int64_t block = index - group.first_block, row = first_row(group.blocks, block);
        const int64_t last = first_row(group.blocks, block + 1), x_bytes = job_.k * sizes_.item;
        char* x = x_ + group.first * x_bytes;
        for (int64_t place = row; place < last; ++place) {
            const char* from = static_cast<const char*>(job_.x) + order_[group.first + place] * job_.x_stride * sizes_.item;
            std::memcpy(x + place * x_bytes, from, size_t(x_bytes));
        }
        char* packed = packed_ + group.first * sizes_.packed(job_.k);
        const Linear product{x, adapter.a, nullptr, group.u, job_.k, adapter.rank, job_.k, adapter.rank, 1, false};
        table_.pack_x(product, row, last, packed + row * sizes_.packed(job_.k));
        table_.run(product, packed, group.blocks, block, block + 1, 0, panels_of(adapter.rank), nullptr);
        char* packed_u = group.packed_u;
        for (const LowRankPart& part : adapter.parts) {
            const int64_t one = sizes_.packed(part.rank);
            const Linear of_part{group.u + part.first_u * sizes_.item, nullptr, nullptr, nullptr, part.rank, 0, adapter.rank, 0, 1,
                                 false};
            table_.pack_x(of_part, row, last, packed_u + row * one);
            packed_u += group.blocks.rows * one;
        }
    }

    // y += scale * B u, for some panels and blocks of rows.
    void expand(int64_t index) const {
        const Piece& piece = *(std::upper_bound(pieces_, pieces_ + n_pieces_, index,
                                                [](int64_t chunk, const Piece& p) { return chunk < p.first_chunk; }) - 1);
        const Group& group = *piece.group;
        const LowRankPart& part = *piece.part;
        const int64_t chunk = index - piece.first_chunk, panel = chunk % piece.across * piece.width;
        const int64_t block = chunk / piece.across * chunk_blocks;
        const LowRankAdd add{part.b, part.rank, part.n, part.scale, static_cast<char*>(job_.y) + part.first_y * sizes_.item,
                             job_.y_stride, order_ + group.first};
        add_(add, piece.u, group.blocks, block, std::min(group.blocks.count, block + chunk_blocks), panel,
             std::min(panels_of(part.n), panel + piece.width));
    }

    const LowRank& job_;
    Dtype dtype_;
    const LinearKernels& table_;
    decltype(KernelTable::low_rank_add_f32) add_;
    Sizes sizes_;
    int64_t n_rows_;
    int32_t* order_ = nullptr;
    Group* groups_ = nullptr;
    Piece* pieces_ = nullptr;
    char *x_ = nullptr, *packed_ = nullptr;
    int64_t n_groups_ = 0, n_places_ = 0, n_blocks_ = 0, n_pieces_ = 0;
};

}  // namespace

void run(const LowRank& job, Dtype dtype, int64_t n_rows) {
    const int64_t adapters = int64_t(job.table->size());
    bool none = true;
    for (int64_t row = 0; row < n_rows; ++row) {
        if (job.adapters[row] >= adapters) throw std::out_of_range("a row's adapter is none of the table");
        none = none && job.adapters[row] < 0;
    }
    if (none) return;
    const LinearKernels& table = dtype == Dtype::f32 ? kernels().linear_f32 : kernels().linear_bf16;
    const int64_t item = dtype == Dtype::f32 ? 4 : 2;
    const int64_t most = std::max<int64_t>(1, pass_bytes / Pass::row_bytes(job, {dtype, item, table.x_unit_bytes}));
    const int64_t passes = ceil_div(n_rows, most);
    for (int64_t pass = 0; pass < passes; ++pass) {
        const int64_t first = n_rows * pass / passes, last = n_rows * (pass + 1) / passes;
        LowRank mine = job;
        mine.x = static_cast<const char*>(job.x) + first * job.x_stride * item;
        mine.adapters += first;
        mine.y = static_cast<char*>(job.y) + first * job.y_stride * item;
        Pass(mine, dtype, last - first).run();
    }
}

}  // namespace headrace
