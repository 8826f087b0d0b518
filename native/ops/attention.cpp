#include "ops/attention.h"

#include <algorithm>
#include <stdexcept>

#include "core/isa.h"
#include "core/pool.h"

namespace headrace {
namespace {

constexpr int64_t few_tiles = 16;       // below this, threads share out segments as well
constexpr int64_t most_segments = 256;  // of a tile that is shared out: their states take memory
constexpr int64_t write_rows = 16;      // of a chunk

}  // namespace

void AttentionPlan::fill(const int64_t* query_starts, const int64_t* seq_lens, int64_t n_seqs, const int32_t* block_table,
                         int64_t columns, const int64_t* write_index, int64_t window) {
    window_ = window;
    blocks_.assign(block_table, block_table + n_seqs * columns);
    write_index_.assign(write_index, write_index + query_starts[n_seqs]);
    tiles_.clear();
    for (int64_t seq = 0; seq < n_seqs; ++seq) {
        const int64_t rows = query_starts[seq + 1] - query_starts[seq], start = seq_lens[seq] - rows;
        if (rows < 0 || start < 0 || seq_lens[seq] > columns * block_tokens)
            throw std::invalid_argument("a row lies outside its sequence, or the block table is too short");
        for (int64_t row = 0; row < rows; row += attention_tile_rows) {
            const int64_t n = std::min(attention_tile_rows, rows - row), first = start + row;
            const int64_t oldest = window ? std::max<int64_t>(0, first + 1 - window) : 0;
            const int64_t begin = oldest / segment_tokens, end = (first + n - 1) / segment_tokens + 1;
            tiles_.push_back({query_starts[seq] + row, n, first, blocks_.data() + seq * columns, begin, end - begin, -1});
        }
    }
    work_.clear();
    split_.clear();
    partial_rows_ = 0;
    const bool few = int64_t(tiles_.size()) < few_tiles;
    for (int32_t i = 0; i < int32_t(tiles_.size()); ++i) {
        AttentionTile& tile = tiles_[size_t(i)];
        if (!few || tile.n_segments == 1 || tile.n_segments > most_segments) {
            work_.push_back({i, -1});
            continue;
        }
        tile.partial = partial_rows_;
        partial_rows_ += tile.n_segments * tile.n_rows;
        split_.push_back(i);
        for (int32_t segment = 0; segment < int32_t(tile.n_segments); ++segment) work_.push_back({i, segment});
    }
}

char* AttentionPlan::memory(int64_t bytes) {
    if (int64_t(scratch_.size()) < bytes + 64) scratch_.resize(size_t(bytes + 64));
    return reinterpret_cast<char*>((reinterpret_cast<uintptr_t>(scratch_.data()) + 63) / 64 * 64);
}

void run(const WriteKv& job, const AttentionPlan* plan, Dtype rows, Dtype cache, int64_t n_rows) {
    const auto kernel = kernels().attention[int(rows)][int(cache)].write_kv;
    const KvPlaces places{plan->write_index_.data()};
    Pool::instance().each((n_rows + write_rows - 1) / write_rows, [&](int64_t chunk, int) {
        kernel(job, places, chunk * write_rows, std::min(n_rows, (chunk + 1) * write_rows));
    });
}

void run(const Attend& job, AttentionPlan* plan, Dtype rows, Dtype cache, int64_t n_rows) {
    if (n_rows != int64_t(plan->write_index_.size())) throw std::invalid_argument("the plan is of another step");
    const AttentionKernels& table = kernels().attention[int(rows)][int(cache)];
    Attend here = job;
    here.window = plan->window_;
    const int64_t group = group_of(job), heads = job.n_kv_heads, row_floats = group * partial_floats(job);
    const int64_t scratch = (table.scratch_bytes(here) + 63) / 64 * 64, threads = Pool::instance().threads();
    const int64_t per_head = plan->partial_rows_ * row_floats;
    char* memory = plan->memory(threads * scratch + heads * per_head * 4);
    float* partials = reinterpret_cast<float*>(memory + threads * scratch);
    const auto partial_of = [&](const AttentionTile& tile, int64_t head, int64_t segment) {
        return partials + head * per_head + (tile.partial + segment * tile.n_rows) * row_floats;
    };
    Pool::instance().each(int64_t(plan->work_.size()) * heads, [&](int64_t chunk, int thread) {
        const auto work = plan->work_[size_t(chunk / heads)];
        const AttentionTile& tile = plan->tiles_[size_t(work.tile)];
        const int64_t head = chunk % heads;
        char* mine = memory + thread * scratch;
        if (work.segment < 0)
            table.tile(here, tile, head, mine);
        else
            table.segment(here, tile, head, work.segment, partial_of(tile, head, work.segment), mine);
    });
    Pool::instance().each(int64_t(plan->split_.size()) * heads, [&](int64_t chunk, int) {
        const AttentionTile& tile = plan->tiles_[size_t(plan->split_[size_t(chunk / heads)])];
        table.merge(here, tile, chunk % heads, partial_of(tile, chunk % heads, 0), tile.n_rows * row_floats);
    });
}

}  // namespace headrace
