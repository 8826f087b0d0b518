// Paged attention of a tile of rows over the blocks of its sequence, for one KV head. What a row computes depends on the
// keys that it sees alone: the same blocks in the same order, whatever other rows its tile holds.
#pragma once

#include "kernels/attention_blocks.h"
#include "kernels/attention_scratch.h"
#include "kernels/attention_state.h"
#include "kernels/elementwise.h"
#include "kernels/linear.h"

namespace headrace {
namespace {

// Work of few rows waits for memory: so many tiles of 32 outputs go side by side, and what comes next is fetched.
template <int rows, int most>
constexpr int side_by_side = rows * 4 <= most ? 4 : rows * 2 <= most ? 2 : 1;
template <int rows>
constexpr bool fetches = rows <= 6;

// Values of a key that are multiplied apart, since they have scales of their own.
struct KeyPart {
    int64_t first;
    int64_t dim;
};

static inline void fetch(const void* from, int64_t bytes) {
    for (int64_t line = 0; line < bytes; line += 64) __builtin_prefetch(static_cast<const char*>(from) + line, 0, 2);
}

// Where the keys, values and queries of a tile lie: each KV head has its own.
struct ByKvHead {
    template <class T>
    using Blocks = SegmentBlocks<T>;
    template <class T>
    static constexpr int parts = 1;

    template <class T>
    static KeyPart part(const Attend& job, int) {
        return {0, job.key_dim};
    }

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
    using P = Products<T>;
    using Scratch = AttentionScratch<T, Form>;
    static constexpr int64_t token_units = block_tokens / P::values;
    static constexpr int64_t unit_columns = panel_outputs * P::values;  // values of T in a unit of a panel

    const Attend& job;
    const AttentionTile& tile;
    const int64_t kv_head;
    Scratch scratch;
    // Of the sequence: those that are computed here.
    const int64_t first_segment = tile.first_segment, last_segment = first_segment + tile.n_segments;
    const int64_t group = group_of(job), heads = tile.n_rows * group;
    typename P::Row weight_rows[P::most_rows] = {};  // of the heads of a block
    typename Form::template Blocks<T> blocks{job, tile, kv_head, scratch.values, first_segment, last_segment};

    // The query of head h of the tile: row h / group, head h % group of the KV head's.
    auto query(int64_t head) const {
        return Form::template query<Q>(job, tile.first_row + head / group, kv_head * group + head % group);
    }

    void pack_queries() {
        const RowBlocks cut = row_blocks(heads, P::most_rows);
        const int64_t units = Scratch::key_units(job);
        for (int64_t block = 0; block < cut.count; ++block) {
            const int64_t first = first_row(cut, block), height = first_row(cut, block + 1) - first;
            for (int64_t head = first; head < first + height; ++head) {
                const auto q = query(head);
                char* to = scratch.queries + (first * units + head - first) * P::x_bytes;
                for (int i = 0; i < Scratch::parts; ++i) {
                    const KeyPart part = Form::template part<T>(job, i);
                    scratch.query_rows[head * Scratch::parts + i] = P::pack(q, part.first, part.dim, to, height * P::x_bytes);
                    to += part_units<T>(part.dim) * height * P::x_bytes;
                }
            }
        }
    }

    // Scores of heads [first, first + rows) over `n` blocks from view `at` on.
    template <int rows, int n>
    void score_blocks(int64_t at, int64_t first) {
        const int64_t all_units = Scratch::key_units(job);
        const int64_t values_ahead = token_units * job.value_dim * P::values * int64_t(sizeof(T)) / all_units;
        const char* x = scratch.queries + first * all_units * P::x_bytes;
        const T* keys[n];
        const char* ahead[n];
#pragma GCC unroll 4
        for (int b = 0; b < n; ++b) {
            keys[b] = blocks.views[at + b].keys;
            ahead[b] = reinterpret_cast<const char*>(blocks.views[at + b].values);
        }
        int64_t unit = 0;
        for (int part = 0; part < Scratch::parts; ++part) {
            const int64_t last = unit + part_units<T>(Form::template part<T>(job, part).dim);
            typename P::Sum sums[n][rows * P::limbs][panel_vecs];
#pragma GCC unroll 4
            for (int b = 0; b < n; ++b)
                for (int i = 0; i < rows * P::limbs; ++i)
                    for (int v = 0; v < panel_vecs; ++v)
                        sums[b][i][v] = P::start(query_row(first + i / P::limbs, part), i % P::limbs);
            for (; unit < last; ++unit, x += rows * P::x_bytes) {
                if constexpr (fetches<rows>)
                    for (int b = 0; b < n; ++b) fetch(ahead[b] + unit * values_ahead, values_ahead);
#pragma GCC unroll 4
                for (int b = 0; b < n; ++b) {  // unrolled, or its sums lie in memory
                    const T* of_unit = keys[b] + unit * unit_columns;
                    P::template step<rows, panel_vecs>(reinterpret_cast<const char*>(of_unit), x, sums[b]);
                }
            }
#pragma GCC unroll 4
            for (int b = 0; b < n; ++b) put_scores<rows>(sums[b], at + b, first, part);
        }
    }

    typename P::Row query_row(int64_t head, int part) const { return scratch.query_rows[head * Scratch::parts + part]; }

    // Sums of products to scores, or behind those of the parts before. Powers of two from here on.
    template <int rows>
    inline __attribute__((always_inline)) void put_scores(const typename P::Sum (&sums)[rows * P::limbs][panel_vecs],
                                                          int64_t at, int64_t first, int part) {
        const Vec scale = Vec::all(job.soft_cap != 0.0f ? job.scale : job.scale * log2_e);
        for (int r = 0; r < rows; ++r)
            for (int v = 0; v < panel_vecs; ++v) {
                float* to = scratch.scores + r * segment_tokens + at * block_tokens + v * Vec::lanes;
                Vec score = P::value(&sums[r * P::limbs][v], panel_vecs, query_row(first + r, part)) * scale;
                if constexpr (P::scaled) {
                    const float* scales = blocks.views[at].key_scales + part * block_tokens;
                    score = score * Vec::load(scales + v * Vec::lanes);
                    if (part) score = Vec::load(to) + score;
                }
                score.store(to);
            }
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
        if constexpr (P::scaled) find_scales(tile.seen[head / group]);
        Vec sum = Vec::zero();
        for (int64_t i = 0; i < tokens; i += 2 * Vec::lanes) {
            const Vec a = power_of_two_below(Vec::load(scores + i) - Vec::all(largest));
            const Vec b = power_of_two_below(Vec::load(scores + i + Vec::lanes) - Vec::all(largest));
            if constexpr (P::scaled) {
                sum = sum + a + b;
                (a * Vec::load(scratch.scales + i)).store(scores + i);
                (b * Vec::load(scratch.scales + i + Vec::lanes)).store(scores + i + Vec::lanes);
            } else {
                sum = P::D::put_weights(a, b, weights + i / P::values * P::x_bytes, sum);
            }
        }
        if constexpr (P::scaled) weight_rows[r] = P::pack_weights(scores, tokens, weights);
        head_state(scratch.segment, job, head) = {sees ? largest : -__builtin_inff(), sum.sum()};
    }

    // Scales of the segment's values, zero where a row may not see them: there they may be anything.
    void find_scales(KeyRange keys) {
        float* to = scratch.scales;
        for (int64_t i = 0; i < blocks.count; ++i, to += block_tokens) {
            std::memcpy(to, blocks.views[i].value_scales, block_tokens * 4);
            if (!blocks.views[i].partly) continue;
            const Seen seen = part_of(keys, blocks.views[i].number);
            for (int64_t token = 0; token < seen.first; ++token) to[token] = 0.0f;
            for (int64_t token = seen.last; token < block_tokens; ++token) to[token] = 0.0f;
        }
    }

    // Weights times values, `wide` times 32 columns.
    template <int rows, int wide>
    void add_columns(int64_t column, int64_t first) {
        constexpr int vecs = panel_vecs * wide;
        const int64_t keys_ahead = stored<T>(job.key_dim) * block_tokens * int64_t(sizeof(T)) / token_units;
        typename P::Sum sums[rows * P::limbs][vecs];
#pragma GCC unroll 24
        for (int i = 0; i < rows * P::limbs; ++i)
#pragma GCC unroll 24
            for (int v = 0; v < vecs; ++v) sums[i][v] = P::start(weight_rows[i / P::limbs], i % P::limbs);
        const char* weights = scratch.weights;
        for (int64_t i = 0; i < blocks.count; ++i) {
            const T* values = blocks.views[i].values + column * P::values;
            const char* ahead = reinterpret_cast<const char*>(blocks.views[i].ahead);
            for (int64_t unit = 0; unit < token_units; ++unit, values += blocks.views[i].stride, weights += P::weight_stride) {
                if constexpr (fetches<rows>)
                    if (column == 0) fetch(ahead + unit * keys_ahead, keys_ahead);
                P::template step<rows, vecs, int(Scratch::weight_bytes)>(reinterpret_cast<const char*>(values), weights, sums);
            }
        }
#pragma GCC unroll 24
        for (int r = 0; r < rows; ++r)
#pragma GCC unroll 24
            for (int v = 0; v < vecs; ++v)
                P::value(&sums[r * P::limbs][v], vecs, weight_rows[r])
                    .store(weighted(scratch.segment, job, first + r) + column + v * Vec::lanes);
    }

    template <int rows>
    void attend_rows(int64_t first) {
        constexpr int n = side_by_side<rows, P::most_rows>;
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
        const RowBlocks cut = row_blocks(heads, P::most_rows);
        for (int64_t i = 0; i < cut.count; ++i) {
            const int64_t first = first_row(cut, i), last = first_row(cut, i + 1);
            if (blocks.count)
                attend_heads<P::most_rows>(first, last - first);
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

}  // namespace
}  // namespace headrace
