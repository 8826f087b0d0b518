// Keys and values into the cache.
#pragma once

#include "core/kv_numbers.h"
#include "kernels/attention_args.h"
#include "kernels/attention_products.h"

namespace headrace {
namespace {

// What a key or value of n numbers is written with: 1 where they are taken as they are. A scale of 0 goes with zeros, and so
// does one that is not a number.
template <class T, class S>
float scale_of(const S* x, int64_t n) {
    if constexpr (!Products<T>::scaled) {
        return 1.0f;
    } else {
        uint32_t largest = 0;
        for (int64_t i = 0; i < n; ++i) {
            const uint32_t size = bits_of(to_float(x[i])) & 0x7fffffffu;
            largest = size > largest ? size : largest;
        }
        const float scale = float_of(largest) / T::most;
        return largest < 0x7f800000u ? scale : scale - scale;
    }
}

// put(i, number) for every value.
template <class T, class S, class Put>
void put_numbers(const S* x, int64_t n, float scale, const Put& put) {
    if constexpr (!Products<T>::scaled) {
        for (int64_t i = 0; i < n; ++i) put(i, converted<T>(x[i]));
    } else {
        constexpr int64_t strip = 64;
        T numbers[strip];
        const bool nothing = !(scale > 0.0f);
        for (int64_t first = 0; first < n; first += strip) {
            const int64_t count = n - first < strip ? n - first : strip;
            for (int64_t i = 0; i < count; ++i) {
                const float size = nothing ? 0.0f : to_float(x[first + i]) / scale;
                numbers[i] = rounded_to(T{}, size > T::most ? T::most : size < -T::most ? -T::most : size);
            }
            for (int64_t i = 0; i < count; ++i) put(first + i, numbers[i]);
        }
    }
}

// Rows of keys and values into their places.
template <class S, class T>
void write_kv(const WriteKv& job, const KvPlaces& places, int64_t first_row, int64_t last_row) {
    constexpr int64_t values = Products<T>::values;
    const int64_t key_size = block_tokens * stored<T>(job.key_dim), value_size = block_tokens * job.value_dim;
    for (int64_t row = first_row; row < last_row; ++row) {
        const int64_t index = places.write_index[row], token = index % block_tokens;
        T* block = static_cast<T*>(job.cache) + index / block_tokens * job.block_stride;
        float* scales = reinterpret_cast<float*>(block + job.n_kv_heads * (key_size + value_size)) + token;
        for (int64_t head = 0; head < job.n_kv_heads; ++head) {
            const S* k = static_cast<const S*>(job.k) + row * job.k_stride + head * job.key_dim;
            const S* v = static_cast<const S*>(job.v) + row * job.v_stride + head * job.value_dim;
            T* keys = block + head * key_size + token * values;
            T* sums = block + job.n_kv_heads * key_size + head * value_size + token / values * job.value_dim * values +
                      token % values;
            const float of_key = scale_of<T>(k, job.key_dim), of_value = scale_of<T>(v, job.value_dim);
            put_numbers<T>(k, job.key_dim, of_key,
                           [&](int64_t i, T x) { keys[i / values * block_tokens * values + i % values] = x; });
            put_numbers<T>(v, job.value_dim, of_value, [&](int64_t i, T x) { sums[i * values] = x; });
            if constexpr (Products<T>::scaled) {
                scales[head * block_tokens] = of_key;
                scales[(job.n_kv_heads + head) * block_tokens] = of_value;
            }
        }
    }
}

}  // namespace
}  // namespace headrace
