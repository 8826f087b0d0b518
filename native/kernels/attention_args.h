// Arguments of paged attention, and the layout of a block of the cache.
//
// A block holds 32 tokens. For each KV head, keys lie in units of k as in a panel of a packed weight: the 32 tokens' values
// of unit 0, then of unit 1, a unit being one value of the head in fp32 and a pair of neighbours in bf16. Values lie in
// units of tokens: the head's values at token 0 (fp32), or at tokens 0 and 1 in pairs (bf16), and so on. Both products run
// along units of 32 bits, as those with packed weights do.
//
// Numbers of one byte lie likewise, in units of 4 (q8) or of 2 (e4m3); what is missing in the last 4 numbers of a key may be
// anything. Behind the values of all heads lie their scales as floats: for each KV head 32 of keys, by token, then likewise of
// values. A key is its numbers times its scale, which is its largest size / 127 or / 448, whatever else is written and when.
// Where one of its values is not finite, the scale is not a number.
#pragma once

#include <cstdint>

#include "core/dtype.h"

namespace headrace {

constexpr int64_t block_tokens = 32;
// Tokens of a segment. Part of the definition: every segment has a softmax of its own, and segments are merged in order.
constexpr int64_t segment_tokens = 256;
constexpr int64_t segment_blocks = segment_tokens / block_tokens;
// Rows of a tile at most. Where a tile starts has no effect on results.
constexpr int64_t attention_tile_rows = 12;

// Numbers that a key of `dim` has room for.
template <class T>
static constexpr int64_t stored(int64_t dim) {
    return sizeof(T) == 1 ? (dim + 3) / 4 * 4 : dim;
}

// Where the keys that a step writes go.
struct KvPlaces {
    const int64_t* write_index;  // [rows] block * 32 + place
};

// Rows of keys and values into the cache.
struct WriteKv {
    const void* k;  // [rows, n_kv_heads, key_dim]
    const void* v;  // [rows, n_kv_heads, value_dim]
    void* cache;
    int64_t k_stride;  // values from a row to the next
    int64_t v_stride;
    int64_t block_stride;  // values of the cache
    int64_t n_kv_heads;
    int64_t key_dim;
    int64_t value_dim;
};

// Keys [first, end) of a sequence: what a row sees. None where first >= end.
struct KeyRange {
    int64_t first;
    int64_t end;
    bool nothing() const { return first >= end; }
};

// Neighbouring rows of a sequence.
struct AttentionTile {
    int64_t first_row;
    int64_t n_rows;
    const KeyRange* seen;   // by each of its rows
    const int32_t* blocks;  // the sequence's row of the block table
    int64_t first_segment;  // those that hold a key that one of its rows sees
    int64_t n_segments;
    int64_t partial;  // its first place in the partial results, by segment; -1: one thread does all segments
};

struct Attend {
    const void* q;  // [rows, n_heads, key_dim], dense heads
    const void* cache;
    void* y;            // [rows, n_heads, value_dim], dense
    const void* sinks;  // [n_heads] in the dtype of q, or null
    int64_t q_stride;
    int64_t block_stride;
    int64_t n_heads;
    int64_t n_kv_heads;
    int64_t key_dim;
    int64_t value_dim;
    float scale;
    float soft_cap;  // 0: none
};

// y = x + c * other in rows that see a key, y = x in rows that see none.
struct AddWhereSeen {
    const void* x;
    const void* other;
    void* y;
    int64_t size;  // values of a row
    int64_t x_stride;
    int64_t other_stride;
    float c;
};

// A row's softmax over some keys: the largest score times log2(e), the sum of weights, and the weighted values behind them.
struct PartialHead {
    float largest;
    float sum;
};

static inline int64_t group_of(const Attend& job) { return job.n_heads / job.n_kv_heads; }
// Floats of a row's weighted values, with room for whole vectors.
static inline int64_t padded_dim(const Attend& job) { return (job.value_dim + 31) / 32 * 32; }
static inline int64_t partial_floats(const Attend& job) { return 16 + padded_dim(job); }

}  // namespace headrace
