// Paged attention of a tile of rows over the blocks of its sequence, for one KV head. What a row computes depends on the
// keys that it sees alone: the same blocks in the same order, whatever other rows its tile holds.
#pragma once

#include "kernels/attention_blocks.h"
#include "kernels/attention_state.h"
#include "kernels/elementwise.h"
#include "kernels/linear.h"

namespace headrace {
namespace {

// The memory a tile works in.
template <class T>
struct AttentionScratch {
    // Of a head's weights over a segment, packed for the product with values.
    static constexpr int64_t weight_bytes = segment_tokens / Dot<T>::values * Dot<T>::x_bytes;

    char* queries;   // [units][heads of a block], block after block
    float* scores;   // [heads of a block][tokens of a segment]
    char* weights;   // [heads of a block] weight_bytes
    T* values;       // a segment's values, with unseen tokens zeroed or short rows padded
    float* segment;  // [heads] PartialHead and weighted values, partial_floats apart
    float* merged;   // the same

    static int64_t bytes(const Attend& job) {
        AttentionScratch scratch;
        return scratch.lay_out(job, nullptr);
    }

    // Returns the bytes taken.
    int64_t lay_out(const Attend& job, char* memory) {
        const int64_t heads = attention_tile_rows * group_of(job);
        char* start = memory;
        const auto take = [&](int64_t bytes) {
            char* here = memory;
            memory += (bytes + 63) / 64 * 64;
            return here;
        };
        queries = take(units_of(job.key_dim, Dot<T>::dtype) * heads * Dot<T>::x_bytes);
        scores = reinterpret_cast<float*>(take(tile_rows * segment_tokens * 4));
        weights = take(tile_rows * weight_bytes);
        values = reinterpret_cast<T*>(take(segment_tokens * padded_dim(job) * int64_t(sizeof(T))));
        segment = reinterpret_cast<float*>(take(heads * partial_floats(job) * 4));
        merged = reinterpret_cast<float*>(take(heads * partial_floats(job) * 4));
        return memory - start;
    }
};

// Work of few rows waits for memory: so many tiles of 32 outputs go side by side, and what comes next is fetched.
template <int rows>
constexpr int side_by_side = rows * 4 <= tile_rows ? 4 : rows * 2 <= tile_rows ? 2 : 1;
template <int rows>
constexpr bool fetches = rows <= 6;

static inline void fetch(const void* from, int64_t bytes) {
    for (int64_t line = 0; line < bytes; line += 64) __builtin_prefetch(static_cast<const char*>(from) + line, 0, 2);
}

// Where the keys, values and queries of a tile lie: each KV head has its own.
struct ByKvHead {
    template <class T>
    using Blocks = SegmentBlocks<T>;

    // What a query head is made of, by index.
    template <class Q>
    static const Q* query(const Attend& job, int64_t row, int64_t head) {
        return static_cast<const Q*>(job.q) + row * job.q_stride + head * job.key_dim;
    }
};

// One tile, one KV head.
template <class Q, class Cache, class Form>
struct TileAttention {
    using T = Cache;
    using D = Dot<T>;
    using Scratch = AttentionScratch<T>;
    static constexpr int64_t token_units = block_tokens / D::values;
    static constexpr int64_t unit_columns = panel_outputs * D::values;  // values of T in a unit of a panel

    const Attend& job;
    const AttentionTile& tile;
    const int64_t kv_head;
    Scratch scratch;
    // Of the sequence: those that are computed here.
    const int64_t first_segment = tile.first_segment, last_segment = first_segment + tile.n_segments;
    const int64_t group = group_of(job), heads = tile.n_rows * group;
    typename Form::template Blocks<T> blocks{job, tile, kv_head, scratch.values, first_segment, last_segment};

    // The query of head h of the tile: row h / group, head h % group of the KV head's.
    auto query(int64_t head) const {
        return Form::template query<Q>(job, tile.first_row + head / group, kv_head * group + head % group);
    }

    void pack_queries() {
        const RowBlocks cut = row_blocks(heads, tile_rows);
        const int64_t dim = job.key_dim, units = units_of(dim, D::dtype);
        for (int64_t block = 0; block < cut.count; ++block) {
            const int64_t first = first_row(cut, block), height = first_row(cut, block + 1) - first;
            for (int64_t head = first; head < first + height; ++head) {
                const auto q = query(head);
                char* to = scratch.queries + (first * units + head - first) * D::x_bytes;
                for (int64_t unit = 0; unit < units; ++unit, to += height * D::x_bytes) {
                    T pair[2] = {};
                    for (int64_t i = 0; i < D::values && unit * D::values + i < dim; ++i)
                        pair[i] = converted<T>(q[unit * D::values + i]);
                    D::put(pair, to);
                }
            }
        }
    }

    // Scores of heads [first, first + rows) over `n` blocks from view `at` on.
    template <int rows, int n>
    void score_blocks(int64_t at, int64_t first) {
        const int64_t units = units_of(job.key_dim, D::dtype);
        const int64_t values_ahead = token_units * job.value_dim * D::values * int64_t(sizeof(T)) / units;
        const char* x = scratch.queries + first * units * D::x_bytes;
        const T* keys[n];
        const char* ahead[n];
        Vec sums[n][rows][panel_vecs];
#pragma GCC unroll 4
        for (int b = 0; b < n; ++b) {
            keys[b] = blocks.views[at + b].keys;
            ahead[b] = reinterpret_cast<const char*>(blocks.views[at + b].values);
            for (int r = 0; r < rows; ++r)
                for (int v = 0; v < panel_vecs; ++v) sums[b][r][v] = Vec::zero();
        }
        for (int64_t unit = 0; unit < units; ++unit, x += rows * D::x_bytes) {
            if constexpr (fetches<rows>)
                for (int b = 0; b < n; ++b) fetch(ahead[b] + unit * values_ahead, values_ahead);
#pragma GCC unroll 4
            for (int b = 0; b < n; ++b) {  // unrolled, or its sums lie in memory
                D::template step<rows, panel_vecs>(reinterpret_cast<const char*>(keys[b] + unit * unit_columns), x, sums[b]);
            }
        }
        // Powers of two from here on.
        const Vec scale = Vec::all(job.soft_cap != 0.0f ? job.scale : job.scale * log2_e);
#pragma GCC unroll 4
        for (int b = 0; b < n; ++b)
            for (int r = 0; r < rows; ++r)
                for (int v = 0; v < panel_vecs; ++v)
                    (sums[b][r][v] * scale)
                        .store(scratch.scores + r * segment_tokens + (at + b) * block_tokens + v * Vec::lanes);
    }

    void cap_scores(float* scores) const {
        const Vec cap = Vec::all(job.soft_cap), wide = Vec::all(job.soft_cap * log2_e);
        for (int64_t i = 0; i < blocks.count * block_tokens; i += Vec::lanes)
            (tanh(Vec::load(scores + i) / cap) * wide).store(scores + i);
    }

    // Unseen tokens are replaced, whatever their score came to.
    void hide(float* scores, KeyRange keys) const {
        for (int64_t i = 0; i < blocks.count; ++i, scores += block_tokens) {
            if (!blocks.views[i].partly) continue;
            const Seen seen = part_of(keys, blocks.views[i].number);
            for (int64_t token = 0; token < seen.first; ++token) scores[token] = -__builtin_inff();
            for (int64_t token = seen.last; token < block_tokens; ++token) scores[token] = -__builtin_inff();
        }
    }

    // From the scores of head `first + r` to weights.
    void weigh(int64_t first, int64_t r) {
        const int64_t head = first + r, tokens = blocks.count * block_tokens;
        float* scores = scratch.scores + r * segment_tokens;
        char* weights = scratch.weights + r * Scratch::weight_bytes;
        if (job.soft_cap != 0.0f) cap_scores(scores);
        hide(scores, tile.seen[head / group]);
        Vec top = Vec::load(scores), next = Vec::load(scores + Vec::lanes);
        for (int64_t i = 2 * Vec::lanes; i < tokens; i += 2 * Vec::lanes) {
            top = Vec::max(top, Vec::load(scores + i));
            next = Vec::max(next, Vec::load(scores + i + Vec::lanes));
        }
        float largest = Vec::max(top, next).largest();
        const bool sees = largest != -__builtin_inff();
        if (!sees) largest = 0.0f;  // then every weight is zero
        Vec sum = Vec::zero();
        for (int64_t i = 0; i < tokens; i += 2 * Vec::lanes, weights += 2 * Vec::lanes / D::values * D::x_bytes) {
            const Vec a = power_of_two_below(Vec::load(scores + i) - Vec::all(largest));
            const Vec b = power_of_two_below(Vec::load(scores + i + Vec::lanes) - Vec::all(largest));
            sum = D::put_weights(a, b, weights, sum);
        }
        head_state(scratch.segment, job, head) = {sees ? largest : -__builtin_inff(), sum.sum()};
    }

    // Weights times values, `wide` times 32 columns.
    template <int rows, int wide>
    void add_columns(int64_t column, int64_t first) {
        constexpr int vecs = panel_vecs * wide;
        const int64_t keys_ahead = job.key_dim * block_tokens * int64_t(sizeof(T)) / token_units;
        Vec sums[rows][vecs];
        for (int r = 0; r < rows; ++r)
            for (int v = 0; v < vecs; ++v) sums[r][v] = Vec::zero();
        const char* weights = scratch.weights;
        for (int64_t i = 0; i < blocks.count; ++i) {
            const T* values = blocks.views[i].values + column * D::values;
            const char* ahead = reinterpret_cast<const char*>(blocks.views[i].ahead);
            for (int64_t unit = 0; unit < token_units; ++unit, values += blocks.views[i].stride, weights += D::x_bytes) {
                if constexpr (fetches<rows>)
                    if (column == 0) fetch(ahead + unit * keys_ahead, keys_ahead);
                D::template step<rows, vecs, int(Scratch::weight_bytes)>(reinterpret_cast<const char*>(values), weights, sums);
            }
        }
        for (int r = 0; r < rows; ++r)
            for (int v = 0; v < vecs; ++v)
                sums[r][v].store(weighted(scratch.segment, job, first + r) + column + v * Vec::lanes);
    }

    template <int rows>
    void attend_rows(int64_t first) {
        constexpr int n = side_by_side<rows>;
        int64_t at = 0;
        for (; at + n <= blocks.count; at += n) score_blocks<rows, n>(at, first);
        for (; at < blocks.count; ++at) score_blocks<rows, 1>(at, first);
        for (int r = 0; r < rows; ++r) weigh(first, r);
        int64_t column = 0;
        for (; column + n * panel_outputs <= padded_dim(job); column += n * panel_outputs) add_columns<rows, n>(column, first);
        for (; column < job.value_dim; column += panel_outputs) add_columns<rows, 1>(column, first);
    }

    template <int rows>
    void attend_heads(int64_t first, int64_t height) {
        if constexpr (rows > 1)
            if (height != rows) return attend_heads<rows - 1>(first, height);
        attend_rows<rows>(first);
    }

    // Leaves the state of a segment in scratch.segment.
    void attend_segment(int64_t segment) {
        if (!blocks.find(segment)) return attend_row_by_row(segment);
        const RowBlocks cut = row_blocks(heads, tile_rows);
        for (int64_t i = 0; i < cut.count; ++i) {
            const int64_t first = first_row(cut, i), last = first_row(cut, i + 1);
            if (blocks.count)
                attend_heads<tile_rows>(first, last - first);
            else
                for (int64_t head = first; head < last; ++head) clear(head_state(scratch.segment, job, head));
        }
    }

    void attend_row_by_row(int64_t segment) {
        for (int64_t row = 0; row < tile.n_rows; ++row) {
            AttentionTile one = tile;
            one.first_row += row;
            one.seen += row;
            one.n_rows = 1;
            TileAttention alone{job, one, kv_head, scratch};
            alone.scratch.segment = scratch.segment + row * group * partial_floats(job);
            alone.pack_queries();
            alone.attend_segment(segment);
        }
        pack_queries();
    }

    // Merged states to rows of y.
    void finish_rows(const float* merged) const {
        for (int64_t head = 0; head < heads; ++head) {
            const int64_t row = tile.first_row + head / group, of_row = kv_head * group + head % group;
            Q* y = static_cast<Q*>(job.y) + (row * job.n_heads + of_row) * job.value_dim;
            finish(job, merged + head * partial_floats(job), of_row, y);
        }
    }
};

// All segments of a tile, one after another.
template <class Tile>
void attend_tile(const Attend& job, const AttentionTile& tile, int64_t kv_head, char* memory) {
    typename Tile::Scratch scratch;
    scratch.lay_out(job, memory);
    Tile work{job, tile, kv_head, scratch};
    work.pack_queries();
    for (int64_t head = 0; head < work.heads; ++head) clear(head_state(scratch.merged, job, head));
    for (int64_t i = 0; i < tile.n_segments; ++i) {
        work.attend_segment(tile.first_segment + i);
        for (int64_t head = 0; head < work.heads; ++head)
            merge(job, scratch.merged + head * partial_floats(job), scratch.segment + head * partial_floats(job));
    }
    work.finish_rows(scratch.merged);
}

// Segments [first, last) of a tile into `partials`, [segments][heads of the tile] states, `stride` floats from a segment to
// the next.
template <class Tile>
void attend_segments(const Attend& job, const AttentionTile& tile, int64_t kv_head, int64_t first, int64_t last,
                     float* partials, int64_t stride, char* memory) {
    typename Tile::Scratch scratch;
    scratch.lay_out(job, memory);
    Tile work{job, tile, kv_head, scratch, tile.first_segment + first, tile.first_segment + last};
    work.pack_queries();
    for (int64_t segment = first; segment < last; ++segment) {
        work.scratch.segment = partials + segment * stride;
        work.attend_segment(tile.first_segment + segment);
    }
}

// The partials of all segments, `stride` floats apart, merged in order.
template <class Tile>
void merge_segments(const Attend& job, const AttentionTile& tile, int64_t kv_head, float* partials, int64_t stride) {
    Tile work{job, tile, kv_head, {}};
    for (int64_t segment = 1; segment < tile.n_segments; ++segment)
        for (int64_t head = 0; head < work.heads; ++head)
            merge(job, partials + head * partial_floats(job),
                  partials + segment * stride + head * partial_floats(job));
    work.finish_rows(partials);
}

}  // namespace
}  // namespace headrace
