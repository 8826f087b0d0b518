#include "ops/attention.h"

#include <algorithm>
#include <cstdint>
#include <stdexcept>

#include "core/isa.h"
#include "core/pool.h"
#include "ops/later.h"

namespace headrace {
namespace {

constexpr int64_t pieces = 16;             // of work for each thread, if tiles give so many
constexpr int64_t short_run = 4;           // segments: shorter work is cut off only where threads would be idle
constexpr int64_t most_partial_rows = 4096;  // of a tile that is shared out: their states take memory
constexpr int64_t write_rows = 16;      // of a chunk

}  // namespace

void AttentionPlan::fill(const Step& step) {
    blocks_.assign(step.block_table, step.block_table + step.n_seqs * step.columns);
    write_index_.assign(step.write_index, step.write_index + step.n_writes);
    set_ranges(step);
    tiles_.clear();
    for (int64_t seq = 0; seq < step.n_seqs; ++seq)
        for (int64_t row = step.query_starts[seq]; row < step.query_starts[seq + 1]; row += attention_tile_rows)
            add_tile(step, seq, row, std::min(attention_tile_rows, step.query_starts[seq + 1] - row));
    share_out(step.n_kv_heads);
    find_read(step);
    by_head_ = int64_t(tiles_.size()) > step.n_seqs;
}

void AttentionPlan::set_ranges(const Step& step) {
    const int64_t n_rows = step.query_starts[step.n_seqs], keys = step.columns * block_tokens;
    if (step.ranges) {
        ranges_.assign(step.ranges, step.ranges + n_rows);
        for (const KeyRange& range : ranges_)
            if (!range.nothing() && (range.first < 0 || range.end > keys))
                throw std::invalid_argument("a row sees keys outside its block table");
        return;
    }
    ranges_.clear();
    for (int64_t seq = 0; seq < step.n_seqs; ++seq) {
        const int64_t length = step.seq_lens[seq], rows = step.query_starts[seq + 1] - step.query_starts[seq];
        if (rows < 0 || rows > length || length > keys)
            throw std::invalid_argument("a row lies outside its sequence, or the block table is too short");
        for (int64_t position = length - rows; position < length; ++position) {
            int64_t first = 0;
            if (step.window) first = std::max<int64_t>(0, position + 1 - step.window);
            if (step.chunk) first = std::max(first, position - position % step.chunk);
            ranges_.push_back({first, position + 1});
        }
    }
}

void AttentionPlan::add_tile(const Step& step, int64_t seq, int64_t row, int64_t n_rows) {
    const KeyRange* seen = ranges_.data() + row;
    int64_t first = INT64_MAX, end = 0;
    for (int64_t i = 0; i < n_rows; ++i) {
        if (seen[i].nothing()) continue;
        first = std::min(first, seen[i].first);
        end = std::max(end, seen[i].end);
    }
    const int64_t first_segment = end ? first / segment_tokens : 0;
    const int64_t n_segments = (end + segment_tokens - 1) / segment_tokens - first_segment;
    tiles_.push_back({row, n_rows, seen, blocks_.data() + seq * step.columns, first_segment, n_segments, -1});
}

void AttentionPlan::find_read(const Step& step) {
    read_.clear();
    for (int64_t seq = 0; seq < step.n_seqs; ++seq) {
        int64_t first = INT64_MAX, end = 0;
        for (int64_t row = step.query_starts[seq]; row < step.query_starts[seq + 1]; ++row) {
            const KeyRange seen = ranges_[size_t(row)];
            if (seen.nothing()) continue;
            first = std::min(first, seen.first / block_tokens);
            end = std::max(end, (seen.end + block_tokens - 1) / block_tokens);
        }
        const int32_t* blocks = blocks_.data() + seq * step.columns;
        if (first < end) read_.insert(read_.end(), blocks + first, blocks + end);
    }
}

// Tiles to threads, and where they are too few or too long, runs of their segments.
void AttentionPlan::share_out(int64_t n_kv_heads) {
    work_.clear();
    split_.clear();
    partial_rows_ = 0;
    int64_t total = 0;
    for (const AttentionTile& tile : tiles_) total += tile.n_segments;
    const int64_t each = total * n_kv_heads / Pool::instance().threads();
    const int64_t run = std::max({each / pieces, std::min(short_run, each / 2), int64_t(1)});
    for (int32_t i = 0; i < int32_t(tiles_.size()); ++i) {
        AttentionTile& tile = tiles_[size_t(i)];
        const int64_t n = tile.n_segments;
        if (n <= run || n * tile.n_rows > most_partial_rows) {
            work_.push_back({i, 0, int32_t(n)});
            continue;
        }
        tile.partial = partial_rows_;
        partial_rows_ += n * tile.n_rows;
        split_.push_back(i);
        for (int64_t first = 0; first < n; first += run)
            work_.push_back({i, int32_t(first), int32_t(std::min(n, first + run))});
    }
}

char* AttentionPlan::memory(int64_t bytes) {
    if (int64_t(scratch_.size()) < bytes + 64) scratch_.resize(size_t(bytes + 64));
    return reinterpret_cast<char*>((reinterpret_cast<uintptr_t>(scratch_.data()) + 63) / 64 * 64);
}

KvPlaces AttentionPlan::places(int64_t n_rows) const {
    if (n_rows != int64_t(write_index_.size())) throw std::invalid_argument("the plan writes other rows");
    return {write_index_.data()};
}

const KeyRange* AttentionPlan::seen(int64_t n_rows) const {
    if (n_rows != int64_t(ranges_.size())) throw std::invalid_argument("the plan is of another step");
    return ranges_.data();
}

int64_t AttentionPlan::tallest() const {
    int64_t rows = 1;
    for (const AttentionTile& tile : tiles_) rows = std::max(rows, tile.n_rows);
    return rows;
}

void run(const WriteKv& job, const AttentionPlan* plan, Dtype rows, Dtype cache, int64_t n_rows) {
    const auto kernel = kernels().attention[int(rows)][int(cache)].write_kv;
    const KvPlaces places = plan->places(n_rows);
    Pool::instance().each((n_rows + write_rows - 1) / write_rows, [&](int64_t chunk, int) {
        kernel(job, places, chunk * write_rows, std::min(n_rows, (chunk + 1) * write_rows));
    });
}

void run(const AddWhereSeen& job, const AttentionPlan* plan, Dtype dtype, int64_t n_rows) {
    const auto kernel = dtype == Dtype::f32 ? kernels().add_where_seen_f32 : kernels().add_where_seen_bf16;
    const KeyRange* seen = plan->seen(n_rows);
    Pool::instance().each((n_rows + write_rows - 1) / write_rows, [&](int64_t chunk, int) {
        kernel(job, seen, chunk * write_rows, std::min(n_rows, (chunk + 1) * write_rows));
    });
}

void run(const Attend& job, AttentionPlan* plan, Dtype rows, Dtype cache, int64_t n_rows) {
    plan->attend(kernels().attention[int(rows)][int(cache)], job, n_rows);
    // A block holds all layers of its group side by side, and the next of them is read next.
    const int64_t value = cache == Dtype::f32 ? 4 : cache == Dtype::bf16 ? 2 : 1;
    const int64_t key = value == 1 ? stored<char>(job.key_dim) : job.key_dim, scales = value == 1 ? 2 * int64_t(sizeof(float)) : 0;
    const int64_t layer = block_tokens * job.n_kv_heads * ((key + job.value_dim) * value + scales);
    const int64_t stride = job.block_stride * value;
    if (stride > layer) LaterReads::mine().want(static_cast<const char*>(job.cache) + layer, plan->read(), stride, layer);
}

void AttentionPlan::attend(const AttentionKernels& table, const Attend& job, int64_t n_rows) {
    if (n_rows != int64_t(ranges_.size())) throw std::invalid_argument("the plan is of another step");
    const int64_t group = group_of(job), heads = job.n_kv_heads, row_floats = group * partial_floats(job);
    const int64_t scratch = (table.scratch_bytes(job) + 63) / 64 * 64, threads = Pool::instance().threads();
    const int64_t per_head = partial_rows_ * row_floats;
    char* start = memory(threads * scratch + heads * per_head * 4);
    float* partials = reinterpret_cast<float*>(start + threads * scratch);
    const auto partials_of = [&](const AttentionTile& tile, int64_t head) {
        return partials + head * per_head + tile.partial * row_floats;
    };
    const int64_t n_work = int64_t(work_.size());
    Pool::instance().each(n_work * heads, [&](int64_t chunk, int thread) {
        const int64_t head = by_head_ ? chunk / n_work : chunk % heads;
        const auto work = work_[size_t(by_head_ ? chunk % n_work : chunk / heads)];
        const AttentionTile& tile = tiles_[size_t(work.tile)];
        char* mine = start + thread * scratch;
        if (tile.partial < 0)
            table.tile(job, tile, head, mine);
        else
            table.segments(job, tile, head, work.first, work.last, partials_of(tile, head), tile.n_rows * row_floats, mine);
    });
    Pool::instance().each(int64_t(split_.size()) * heads, [&](int64_t chunk, int) {
        const AttentionTile& tile = tiles_[size_t(split_[size_t(chunk / heads)])];
        table.merge(job, tile, chunk % heads, partials_of(tile, chunk % heads), tile.n_rows * row_floats);
    });
}

}  // namespace headrace
