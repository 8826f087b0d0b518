// Keys and values into the cache.
#pragma once

#include "kernels/attention_args.h"
#include "simd/dot.h"

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

}  // namespace
}  // namespace headrace
