// The blocks of a segment as the rows of a tile see them, for one KV head.
#pragma once

#include "kernels/attention_args.h"
#include "kernels/attention_products.h"

namespace headrace {
namespace {

// Tokens [first, last) of a block that a row may see.
struct Seen {
    int64_t first;
    int64_t last;
    bool nothing() const { return first >= last; }
    bool all() const { return first == 0 && last == block_tokens; }
};

static inline Seen part_of(KeyRange keys, int64_t block) {
    const int64_t start = block * block_tokens, first = keys.first - start, end = keys.end - start;
    if (keys.nothing() || end <= 0 || first >= block_tokens) return {block_tokens, block_tokens};
    return {first > 0 ? first : 0, end < block_tokens ? end : block_tokens};
}

template <class T>
struct BlockView {
    int64_t number;
    const T* keys;
    const T* values;
    int64_t stride;  // values of T from a unit of tokens to the next
    const T* ahead;  // keys of the next segment, or what is read anyway
    bool partly;     // some row does not see all of it
    const float* key_scales;    // by part of the key, then by token; where numbers have scales
    const float* value_scales;  // by token
};

template <class T>
struct SegmentBlocks {
    using P = Products<T>;
    static constexpr int64_t token_units = block_tokens / P::values;

    const Attend& job;
    const AttentionTile& tile;
    const int64_t kv_head;
    T* copies;  // room for the values of a segment
    // Segments [first, last) of the sequence are computed together, then perhaps those of the next KV head.
    int64_t first;
    int64_t last;
    KeyRange common = seen_by_all();
    BlockView<T> views[segment_blocks] = {};
    int64_t count = 0;

    // Finds the blocks of a segment that some row sees. Returns false if the rows cannot be computed together: some
    // would have to see what only others may, and it is not finite, so that a weight of zero would not hide it. Numbers with
    // scales are finite whatever a block holds; their scales are hidden row by row.
    bool find(int64_t segment) {
        count = 0;
        for (int64_t block = segment * segment_blocks; block < (segment + 1) * segment_blocks; ++block) {
            const Seen any = seen_by_any(block);
            if (any.nothing()) continue;
            const bool together = all_see(block, any), whole = together && any.all();
            BlockView<T>& view = views[count];
            view = {block, keys_of(block), values_of(block), job.value_dim * P::values, nullptr, !whole, nullptr, nullptr};
            if constexpr (P::scaled) {
                view.key_scales = scales_of(block) + kv_head * block_tokens;
                view.value_scales = view.key_scales + job.n_kv_heads * block_tokens;
                for (int64_t i = 0; i < block_tokens; i += 16) {  // small, and wanted soon
                    __builtin_prefetch(view.key_scales + i);
                    __builtin_prefetch(view.value_scales + i);
                }
            } else if (!whole || job.value_dim % panel_outputs != 0) {
                T* copy = copies + count * block_tokens * padded_dim(job);
                copy_values(view.values, any, copy);
                if (!together && !finite(copy)) return false;
                view.values = copy;
                view.stride = padded_dim(job) * P::values;
            }
            view.ahead = ahead_of(block, segment);
            ++count;
        }
        return true;
    }

  protected:
    const T* block_at(int64_t block) const {
        return static_cast<const T*>(job.cache) + int64_t(tile.blocks[block]) * job.block_stride;
    }

    // Keys that are wanted a segment later.
    const T* ahead_of(int64_t block, int64_t segment) const {
        const int64_t next = block + segment_blocks, again = block - (segment - first) * segment_blocks;
        if (segment + 1 < last) return keys_of(seen_by_any(next).nothing() ? block : next);
        if (kv_head + 1 == job.n_kv_heads || seen_by_any(again).nothing()) return keys_of(block);
        return keys_of(again) + block_tokens * stored<T>(job.key_dim);
    }

    const T* keys_of(int64_t block) const { return block_at(block) + kv_head * block_tokens * stored<T>(job.key_dim); }

    const T* values_of(int64_t block) const {
        return block_at(block) + block_tokens * (job.n_kv_heads * stored<T>(job.key_dim) + kv_head * job.value_dim);
    }

    // Behind all numbers. Of these, the last rows of short values are read past their end, as far as here.
    const float* scales_of(int64_t block) const {
        const int64_t numbers = block_tokens * job.n_kv_heads * (stored<T>(job.key_dim) + job.value_dim);
        return reinterpret_cast<const float*>(block_at(block) + numbers);
    }

    // Keys that every row sees.
    KeyRange seen_by_all() const {
        KeyRange all = tile.seen[0];
        for (int64_t row = 1; row < tile.n_rows && !all.nothing(); ++row) {
            const KeyRange seen = tile.seen[row];
            all = {seen.first > all.first ? seen.first : all.first, seen.end < all.end ? seen.end : all.end};
        }
        return all;
    }

    // What all rows together see of a block.
    Seen seen_by_any(int64_t block) const {
        if (const Seen all = part_of(common, block); all.all()) return all;
        Seen any{block_tokens, 0};
        for (int64_t row = 0; row < tile.n_rows; ++row) {
            const Seen seen = part_of(tile.seen[row], block);
            if (seen.nothing()) continue;
            if (seen.first < any.first) any.first = seen.first;
            if (seen.last > any.last) any.last = seen.last;
        }
        return any;
    }

    bool all_see(int64_t block, Seen what) const {
        if (part_of(common, block).all()) return true;
        for (int64_t row = 0; row < tile.n_rows; ++row) {
            const Seen seen = part_of(tile.seen[row], block);
            if (seen.first > what.first || seen.last < what.last) return false;
        }
        return true;
    }

    // Values in rows of whole vectors, zero where a token is seen by nobody: zero times what a recycled block may hold is
    // not always zero.
    void copy_values(const T* from, Seen seen, T* to) const {
        const int64_t used = job.value_dim * P::values, width = padded_dim(job) * P::values;
        for (int64_t unit = 0; unit < token_units; ++unit, from += used, to += width) {
            const int64_t token = unit * P::values;
            const bool whole = token >= seen.first && token + P::values <= seen.last;
            if (whole) std::memcpy(to, from, size_t(used) * sizeof(T));
            for (int64_t i = whole ? used : 0; i < width; ++i) {
                const int64_t at = token + i % P::values;
                to[i] = i < used && at >= seen.first && at < seen.last ? from[i] : T{};
            }
        }
    }

    bool finite(const T* values) const {
        Vec sum = Vec::zero();
        for (int64_t i = 0; i < block_tokens * padded_dim(job); i += Vec::lanes)
            sum = Vec::fma(Vec::load(values + i), Vec::zero(), sum);
        return sum.sum() == 0.0f;
    }
};

}  // namespace
}  // namespace headrace
