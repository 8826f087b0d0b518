// Arguments of latent attention, and of products head by head.
//
// A layer's share of a block lies as the keys of one KV head do (attention_args.h): a token's latent vector, then its rotated
// key. There are no values beside them: values are the latent vectors. Numbers of one byte have scales behind them: 32 of
// latent vectors, by token, then 32 of rotated keys, each of which begins with a unit of 4 of its own.
#pragma once

#include <cstdint>

#include "kernels/attention_args.h"

namespace headrace {

// Rows of latent vectors and rotated keys into the cache.
struct WriteLatent {
    const void* latent;  // [rows, rank]
    const void* rope;    // [rows, rope_dim]
    void* cache;
    int64_t latent_stride;  // values from a row to the next
    int64_t rope_stride;
    int64_t block_stride;  // values of the cache
    int64_t rank;
    int64_t rope_dim;
};

// Attention of all heads over the same keys, of which value_dim values are weighted. n_kv_heads: in how many groups heads are
// taken, which has no effect on results.
struct LatentAttend : Attend {
    const void* q_rope;  // [rows, n_heads, key_dim - value_dim], dense heads; q is [rows, n_heads, value_dim]
    int64_t q_rope_stride;
};

// y[t, h] = W[h] x[t, h]: an output is one sum over k in order, in fp32, and is rounded once.
struct PerHead {
    const void* x;       // [rows, n_heads, k], dense heads
    const void* weight;  // a packed weight [n, k] for each head
    void* y;             // [rows, n_heads, n], dense
    int64_t x_stride;
    int64_t n_heads;
    int64_t k;
    int64_t n;
};

}  // namespace headrace
