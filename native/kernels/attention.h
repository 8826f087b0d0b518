// Paged attention of a tile of rows over the blocks of its sequence, for one KV head. What a row computes depends on its
// position and the cache alone: the same blocks in the same order, whatever other rows its tile holds.
#pragma once

#include "kernels/attention_args.h"
#include "kernels/elementwise.h"
#include "kernels/linear.h"
#include "simd/exp.h"

namespace headrace {
namespace {

// Rows of keys and values into their places.
template <class S, class T>
void write_kv(const WriteKv& job, const KvPlaces& places, int64_t first_row, int64_t last_row) {
    constexpr int64_t values = Dot<T>::values;
    const int64_t key_size = block_tokens * job.key_dim, value_size = block_tokens * job.value_dim;
    for (int64_t row = first_row; row < last_row; ++row) {
        const int64_t index = places.write_index[row], token = index % block_tokens;
        T* block = static_cast<T*>(job.cache) + index / block_tokens * job.block_stride;
        for (int64_t head = 0; head < job.n_kv_heads; ++head) {
            const S* k = static_cast<const S*>(job.k) + row * job.k_stride + head * job.key_dim;
            const S* v = static_cast<const S*>(job.v) + row * job.v_stride + head * job.value_dim;
            T* keys = block + head * key_size + token * values;
            T* sums = block + job.n_kv_heads * key_size + head * value_size + token / values * job.value_dim * values +
                      token % values;
            for (int64_t i = 0; i < job.key_dim; ++i)
                keys[i / values * block_tokens * values + i % values] = converted<T>(k[i]);
            for (int64_t i = 0; i < job.value_dim; ++i) sums[i * values] = converted<T>(v[i]);
        }
    }
}

// The memory a tile works in: queries packed for the product with keys, scores, weights, and the state of its heads.
template <class T>
struct AttentionScratch {
    char* queries;   // [units][heads of a block], block after block
    float* scores;   // [heads][32]
    T* weights;      // [heads][32]
    char* packed;    // [units of 32 tokens][tile_rows]
    char* values;    // one block's values, with masked tokens zeroed or short rows padded
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
        scores = reinterpret_cast<float*>(take(heads * block_tokens * 4));
        weights = reinterpret_cast<T*>(take(heads * block_tokens * int64_t(sizeof(T))));
        packed = take(block_tokens * tile_rows * Dot<T>::x_bytes);
        values = take(block_tokens * padded_dim(job) * 4);
        segment = reinterpret_cast<float*>(take(heads * partial_floats(job) * 4));
        merged = reinterpret_cast<float*>(take(heads * partial_floats(job) * 4));
        return memory - start;
    }
};

static inline PartialHead& head_state(float* partials, const Attend& job, int64_t head) {
    return *reinterpret_cast<PartialHead*>(partials + head * partial_floats(job));
}

static inline float* weighted(float* partials, const Attend& job, int64_t head) {
    return partials + head * partial_floats(job) + 16;
}

static inline void clear(float* partials, const Attend& job, int64_t heads) {
    for (int64_t head = 0; head < heads; ++head) {
        head_state(partials, job, head) = {-__builtin_inff(), 0.0f};
        float* to = weighted(partials, job, head);
        for (int64_t i = 0; i < padded_dim(job); ++i) to[i] = 0.0f;
    }
}

// Adds the state `from` of a head behind `into`; an empty one changes nothing.
static inline void merge(const Attend& job, float* into, const float* from) {
    PartialHead& a = *reinterpret_cast<PartialHead*>(into);
    const PartialHead& b = *reinterpret_cast<const PartialHead*>(from);
    if (b.sum == 0.0f) return;
    if (a.sum == 0.0f) {
        for (int64_t i = 0; i < partial_floats(job); ++i) into[i] = from[i];
        return;
    }
    const float largest = a.largest > b.largest ? a.largest : b.largest;
    const float scale_a = exp_of(a.largest - largest), scale_b = exp_of(b.largest - largest);
    a = {largest, __builtin_fmaf(b.sum, scale_b, a.sum * scale_a)};
    for (int64_t i = 16; i < partial_floats(job); i += Vec::lanes) {
        const Vec mine = Vec::load(into + i) * Vec::all(scale_a);
        Vec::fma(Vec::load(from + i), Vec::all(scale_b), mine).store(into + i);
    }
}

// Tokens [first, last) of a block that a row may see.
struct Seen {
    int64_t first;
    int64_t last;
    bool nothing() const { return first >= last; }
    bool all() const { return first == 0 && last == block_tokens; }
};

static inline Seen part_of(KeyRange keys, int64_t block) {
    const int64_t start = block * block_tokens, first = keys.first - start, end = keys.end - start;
    return {first > 0 ? first : 0, end < block_tokens ? end : block_tokens};
}

// One tile, one KV head.
template <class Q, class T>
struct TileAttention {
    using D = Dot<T>;
    static constexpr int64_t token_units = block_tokens / D::values;

    const Attend& job;
    const AttentionTile& tile;
    const int64_t kv_head;
    AttentionScratch<T> scratch;
    const int64_t group = group_of(job), heads = tile.n_rows * group;

    const T* block_at(int64_t block) const {
        return static_cast<const T*>(job.cache) + int64_t(tile.blocks[block]) * job.block_stride;
    }

    // The query of head h of the tile: row h / group, head h % group of the KV head's.
    const Q* query(int64_t head) const {
        const int64_t row = tile.first_row + head / group;
        return static_cast<const Q*>(job.q) + row * job.q_stride + (kv_head * group + head % group) * job.key_dim;
    }

    void pack_queries() {
        const RowBlocks blocks = row_blocks(heads, tile_rows);
        const int64_t dim = job.key_dim, units = units_of(dim, D::dtype);
        for (int64_t block = 0; block < blocks.count; ++block) {
            const int64_t first = first_row(blocks, block), height = first_row(blocks, block + 1) - first;
            for (int64_t head = first; head < first + height; ++head) {
                const Q* q = query(head);
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

    template <int rows>
    void score_rows(const char* keys, int64_t first) {
        const int64_t units = units_of(job.key_dim, D::dtype);
        Tile<D, rows> products;
        products.run(keys, scratch.queries + first * units * D::x_bytes, units);
        const Vec scale = Vec::all(job.scale);
        for (int r = 0; r < rows; ++r)
            for (int v = 0; v < panel_vecs; ++v)
                (products.sums[r][v] * scale).store(scratch.scores + (first + r) * block_tokens + v * Vec::lanes);
        if (job.soft_cap != 0.0f) cap_scores(scratch.scores + first * block_tokens, rows * block_tokens);
    }

    void cap_scores(float* scores, int64_t n) {
        const Vec cap = Vec::all(job.soft_cap);
        for (int64_t i = 0; i < n; i += Vec::lanes) (tanh(Vec::load(scores + i) / cap) * cap).store(scores + i);
    }

    template <int rows>
    void score(const char* keys, int64_t first, int64_t height) {
        if constexpr (rows > 1)
            if (height != rows) return score<rows - 1>(keys, first, height);
        score_rows<rows>(keys, first);
    }

    // The weights of a head over a block, rounded as the product with the values wants them; returns the factor for what
    // was summed so far. Masked tokens are replaced, whatever their score came to.
    float weigh(int64_t head, Seen seen) {
        float* scores = scratch.scores + head * block_tokens;
        for (int64_t i = 0; i < seen.first; ++i) scores[i] = -__builtin_inff();
        for (int64_t i = seen.last; i < block_tokens; ++i) scores[i] = -__builtin_inff();
        PartialHead& state = head_state(scratch.segment, job, head);
        Vec top = Vec::load(scores);
        for (int64_t i = Vec::lanes; i < block_tokens; i += Vec::lanes) top = Vec::max(top, Vec::load(scores + i));
        const float block_top = top.largest();
        const float largest = block_top > state.largest ? block_top : state.largest;
        const float factor = exp_of(state.largest - largest);
        T* weights = scratch.weights + head * block_tokens;
        Vec sum = Vec::zero();
        for (int64_t i = 0; i < block_tokens; i += Vec::lanes) {
            exp(Vec::load(scores + i) - Vec::all(largest)).store(weights + i);
            sum = sum + Vec::load(weights + i);
        }
        state = {largest, __builtin_fmaf(state.sum, factor, sum.sum())};
        return factor;
    }

    // Weights of heads [first, first + rows) times values: 32 columns at a time, `stride` bytes from a unit to the next.
    template <int rows>
    void add_columns(const char* values, int64_t stride, int64_t column, int64_t first, const float* factors) {
        Vec sums[rows][panel_vecs];
        for (int r = 0; r < rows; ++r)
            for (int v = 0; v < panel_vecs; ++v)
                sums[r][v] = Vec::load(weighted(scratch.segment, job, first + r) + column + v * Vec::lanes) *
                             Vec::all(factors[r]);
        const char* packed = scratch.packed;
        for (int64_t unit = 0; unit < token_units; ++unit) {
            D::template step<rows, panel_vecs>(values, packed, sums);
            values += stride;
            packed += rows * D::x_bytes;
        }
        for (int r = 0; r < rows; ++r)
            for (int v = 0; v < panel_vecs; ++v)
                sums[r][v].store(weighted(scratch.segment, job, first + r) + column + v * Vec::lanes);
    }

    template <int rows>
    void add_rows(const char* values, int64_t stride, int64_t first, const float* factors) {
        for (int r = 0; r < rows; ++r)
            for (int64_t unit = 0; unit < token_units; ++unit)
                D::put(scratch.weights + (first + r) * block_tokens + unit * D::values,
                       scratch.packed + (unit * rows + r) * D::x_bytes);
        for (int64_t column = 0; column < job.value_dim; column += panel_outputs)
            add_columns<rows>(values + column * 4, stride, column, first, factors);
    }

    template <int rows>
    void add(const char* values, int64_t stride, int64_t first, int64_t height, const float* factors) {
        if constexpr (rows > 1)
            if (height != rows) return add<rows - 1>(values, stride, first, height, factors);
        add_rows<rows>(values, stride, first, factors);
    }

    // The values of a block in rows of whole vectors, zero where a token is not seen: zero times what a recycled block
    // may hold is not always zero.
    void copy_values(const T* from, Seen seen) {
        T* to = reinterpret_cast<T*>(scratch.values);
        const int64_t dim = job.value_dim, width = padded_dim(job) * D::values;
        for (int64_t unit = 0; unit < token_units; ++unit, from += dim * D::values, to += width) {
            for (int64_t i = 0; i < width; ++i) to[i] = T{};
            for (int64_t i = 0; i < D::values; ++i) {
                const int64_t token = unit * D::values + i;
                if (token < seen.first || token >= seen.last) continue;
                for (int64_t d = 0; d < dim; ++d) to[d * D::values + i] = from[d * D::values + i];
            }
        }
    }

    // Heads [first, last), which see the same of the block.
    void add_values(const T* values, Seen seen, int64_t first, int64_t last) {
        const int64_t dim = job.value_dim;
        const bool as_it_is = seen.all() && dim % panel_outputs == 0;
        if (!as_it_is) copy_values(values, seen);
        const char* from = as_it_is ? reinterpret_cast<const char*>(values) : scratch.values;
        const int64_t stride = (as_it_is ? dim : padded_dim(job)) * 4;
        const RowBlocks blocks = row_blocks(last - first, tile_rows);
        for (int64_t block = 0; block < blocks.count; ++block) {
            const int64_t begin = first + first_row(blocks, block), end = first + first_row(blocks, block + 1);
            float factors[tile_rows];
            for (int64_t head = begin; head < end; ++head) factors[head - begin] = weigh(head, seen);
            add<tile_rows>(from, stride, begin, end - begin, factors);
        }
    }

    void attend_block(int64_t block) {
        const T* keys = block_at(block) + kv_head * block_tokens * job.key_dim;
        const T* values = block_at(block) + block_tokens * (job.n_kv_heads * job.key_dim + kv_head * job.value_dim);
        const RowBlocks blocks = row_blocks(heads, tile_rows);
        for (int64_t i = 0; i < blocks.count; ++i) {
            const int64_t first = first_row(blocks, i);
            score<tile_rows>(reinterpret_cast<const char*>(keys), first, first_row(blocks, i + 1) - first);
        }
        // Rows that see all of it go together, the others one by one.
        for (int64_t row = 0; row < tile.n_rows;) {
            const Seen seen = part_of(tile.seen[row], block);
            int64_t next = row + 1;
            if (seen.all())
                while (next < tile.n_rows && part_of(tile.seen[next], block).all()) ++next;
            if (!seen.nothing()) add_values(values, seen, row * group, next * group);
            row = next;
        }
    }

    // Leaves the state of a segment in scratch.segment.
    void attend_segment(int64_t segment) {
        clear(scratch.segment, job, heads);
        for (int64_t block = segment * segment_blocks; block < (segment + 1) * segment_blocks; ++block)
            if (sees(block)) attend_block(block);
    }

    // Whether a row sees a key of the block. Where none does, the block table may say anything.
    bool sees(int64_t block) const {
        for (int64_t row = 0; row < tile.n_rows; ++row)
            if (!tile.seen[row].nothing() && !part_of(tile.seen[row], block).nothing()) return true;
        return false;
    }

    // Merged states to rows of y. Zeros for a row that saw nothing.
    void finish(float* merged) {
        for (int64_t head = 0; head < heads; ++head) {
            const int64_t row = tile.first_row + head / group, of_row = kv_head * group + head % group;
            Q* y = static_cast<Q*>(job.y) + (row * job.n_heads + of_row) * job.value_dim;
            const PartialHead& state = head_state(merged, job, head);
            const float* from = weighted(merged, job, head);
            float factor = state.sum == 0.0f ? 0.0f : 1.0f, sum = state.sum == 0.0f ? 1.0f : state.sum;
            if (job.sinks && state.sum != 0.0f) {
                // As if a key of weighted value zero had this score.
                const float sink = to_float(static_cast<const Q*>(job.sinks)[of_row]);
                const float largest = state.largest > sink ? state.largest : sink;
                factor = exp_of(state.largest - largest);
                sum = __builtin_fmaf(state.sum, factor, exp_of(sink - largest));
            }
            for (int64_t i = 0; i < job.value_dim; i += Vec::lanes) {
                const int64_t left = job.value_dim - i;
                (Vec::load(from + i) * Vec::all(factor) / Vec::all(sum)).store(y + i, int(left < Vec::lanes ? left : Vec::lanes));
            }
        }
    }
};

// All segments of a tile, one after another.
template <class Q, class T>
void attend_tile(const Attend& job, const AttentionTile& tile, int64_t kv_head, char* memory) {
    AttentionScratch<T> scratch;
    scratch.lay_out(job, memory);
    TileAttention<Q, T> work{job, tile, kv_head, scratch};
    work.pack_queries();
    clear(scratch.merged, job, work.heads);
    for (int64_t i = 0; i < tile.n_segments; ++i) {
        work.attend_segment(tile.first_segment + i);
        for (int64_t head = 0; head < work.heads; ++head)
            merge(job, scratch.merged + head * partial_floats(job), scratch.segment + head * partial_floats(job));
    }
    work.finish(scratch.merged);
}

// One segment of a tile into `partials`, [heads of the tile] states.
template <class Q, class T>
void attend_segment(const Attend& job, const AttentionTile& tile, int64_t kv_head, int64_t segment, float* partials,
                    char* memory) {
    AttentionScratch<T> scratch;
    scratch.lay_out(job, memory);
    scratch.segment = partials;
    TileAttention<Q, T> work{job, tile, kv_head, scratch};
    work.pack_queries();
    work.attend_segment(tile.first_segment + segment);
}

// The partials of all segments, `stride` floats apart, merged in order.
template <class Q, class T>
void merge_segments(const Attend& job, const AttentionTile& tile, int64_t kv_head, float* partials, int64_t stride) {
    TileAttention<Q, T> work{job, tile, kv_head, {}};
    for (int64_t segment = 1; segment < tile.n_segments; ++segment)
        for (int64_t head = 0; head < work.heads; ++head)
            merge(job, partials + head * partial_floats(job),
                  partials + segment * stride + head * partial_floats(job));
    work.finish(partials);
}

}  // namespace
}  // namespace headrace
