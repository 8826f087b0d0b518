// Latent attention: attention of a tile of rows, in which all heads read the same keys, and the keys' first part is weighted.
#pragma once

#include "core/transpose.h"
#include "kernels/attention_segments.h"
#include "kernels/attention_write.h"
#include "kernels/latent_args.h"

namespace headrace {
namespace {

template <class S, class T>
void write_latent(const WriteLatent& job, const KvPlaces& places, int64_t first_row, int64_t last_row) {
    constexpr int64_t values = Products<T>::values;
    for (int64_t row = first_row; row < last_row; ++row) {
        const int64_t index = places.write_index[row], token = index % block_tokens;
        T* block = static_cast<T*>(job.cache) + index / block_tokens * job.block_stride;
        T* to = block + token * values;
        const S* latent = static_cast<const S*>(job.latent) + row * job.latent_stride;
        const S* rope = static_cast<const S*>(job.rope) + row * job.rope_stride;
        const int64_t before = stored<T>(job.rank);
        const auto put = [&](int64_t i, T x) { to[i / values * block_tokens * values + i % values] = x; };
        const float of_latent = scale_of<T>(latent, job.rank), of_rope = scale_of<T>(rope, job.rope_dim);
        put_numbers<T>(latent, job.rank, of_latent, put);
        put_numbers<T>(rope, job.rope_dim, of_rope, [&](int64_t i, T x) { put(before + i, x); });
        if constexpr (Products<T>::scaled) {
            float* scales = reinterpret_cast<float*>(block + block_tokens * (before + stored<T>(job.rope_dim))) + token;
            scales[0] = of_latent;
            scales[block_tokens] = of_rope;
        }
    }
}

// Keys of a block, unit after unit of a key, to values, unit after unit of tokens, `stride` bytes apart.
static inline void turn_block(const float* keys, int64_t dim, char* to, int64_t stride) {
    const char* from = reinterpret_cast<const char*>(keys);
    constexpr int64_t row = block_tokens * 4;
    int64_t d = 0;
    for (; d + 4 <= dim; d += 4)
        for (int64_t token = 0; token < block_tokens; token += 4)
            transpose_4x4(from + d * row + token * 4, row, to + token * stride + d * 4, stride);
    for (; d < dim; ++d)
        for (int64_t token = 0; token < block_tokens; ++token) std::memcpy(to + token * stride + d * 4, keys + d * block_tokens + token, 4);
}

static inline void turn_block(const bf16* keys, int64_t dim, char* to, int64_t stride) {
    typedef uint16_t Eight __attribute__((vector_size(16)));
    const char* from = reinterpret_cast<const char*>(keys);
    constexpr int64_t row = block_tokens * 4;
    int64_t unit = 0;
    // Two units of a key, two pairs of tokens: each of the four 2 x 2 squares is transposed.
    for (; 2 * unit + 4 <= dim; unit += 2)
        for (int64_t pair = 0; pair < block_tokens / 2; pair += 2) {
            Eight a, b;
            std::memcpy(&a, from + unit * row + pair * 8, 16);
            std::memcpy(&b, from + (unit + 1) * row + pair * 8, 16);
            const Eight first = __builtin_shufflevector(a, b, 0, 2, 1, 3, 8, 10, 9, 11);
            const Eight second = __builtin_shufflevector(a, b, 4, 6, 5, 7, 12, 14, 13, 15);
            std::memcpy(to + pair * stride + unit * 8, &first, 16);
            std::memcpy(to + (pair + 1) * stride + unit * 8, &second, 16);
        }
    for (int64_t d = 2 * unit; d < dim; ++d)
        for (int64_t token = 0; token < block_tokens; ++token)
            std::memcpy(to + token / 2 * stride + d * 4 + token % 2 * 2, keys + d / 2 * 2 * block_tokens + token * 2 + d % 2, 2);
}

static inline void turn_block(const q8* keys, int64_t dim, char* to, int64_t stride) {
    typedef int8_t Sixteen __attribute__((vector_size(16)));
    // 4 numbers of a key, 4 tokens: transposed.
    for (int64_t d = 0; d < dim; d += 4, keys += 4 * block_tokens)
        for (int64_t token = 0; token < block_tokens; token += 4) {
            Sixteen square;
            std::memcpy(&square, keys + token * 4, 16);
            square = __builtin_shufflevector(square, square, 0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
            const int64_t numbers = dim - d < 4 ? dim - d : 4;
            if (numbers == 4)
                std::memcpy(to + token / 4 * stride + d * 4, &square, 16);
            else
                std::memcpy(to + token / 4 * stride + d * 4, &square, size_t(numbers * 4));
        }
}

static inline void turn_block(const e4m3* keys, int64_t dim, char* to, int64_t stride) {
    typedef int8_t Sixteen __attribute__((vector_size(16)));
    // 2 numbers of a key, 8 tokens: each of the four 2 x 2 squares is transposed.
    for (int64_t d = 0; d < dim; d += 2, keys += 2 * block_tokens)
        for (int64_t token = 0; token < block_tokens; token += 8) {
            Sixteen squares;
            std::memcpy(&squares, keys + token * 2, 16);
            squares = __builtin_shufflevector(squares, squares, 0, 2, 1, 3, 4, 6, 5, 7, 8, 10, 9, 11, 12, 14, 13, 15);
            const char* from = reinterpret_cast<const char*>(&squares);
            const size_t bytes = d + 1 < dim ? 4 : 2;
            for (int64_t pair = 0; pair < 4; ++pair, from += 4) {
                char* at = to + (token / 2 + pair) * stride + d * 2;
                if (bytes == 4)
                    std::memcpy(at, from, 4);
                else
                    std::memcpy(at, from, 2);
            }
        }
}

// The blocks of a segment: keys as they lie, values turned, which is done once for all heads of a tile.
template <class T>
struct LatentBlocks : SegmentBlocks<T> {
    using P = Products<T>;

    // As SegmentBlocks: false if the rows cannot be computed together.
    bool find(int64_t segment) {
        const Attend& job = this->job;
        this->count = 0;
        for (int64_t block = segment * segment_blocks; block < (segment + 1) * segment_blocks; ++block) {
            const Seen any = this->seen_by_any(block);
            if (any.nothing()) continue;
            const bool together = this->all_see(block, any);
            T* copy = this->copies + this->count * block_tokens * padded_dim(job);
            turn(this->block_at(block), any, copy);
            if constexpr (!P::scaled)
                if (!together && !this->finite(copy)) return false;
            const int64_t next = block + segment_blocks;
            const bool goes_on = segment + 1 < this->last && !this->seen_by_any(next).nothing();
            const float* scales = P::scaled ? scales_of(block) : nullptr;
            this->views[this->count] = {block, this->block_at(block), copy, padded_dim(job) * P::values,
                                        this->block_at(goes_on ? next : block), !(together && any.all()), scales, scales};
            ++this->count;
        }
        return true;
    }

  private:
    // Of latent vectors, then of rotated keys.
    const float* scales_of(int64_t block) const {
        const int64_t rope_dim = this->job.key_dim - this->job.value_dim;
        const int64_t numbers = stored<T>(this->job.value_dim) + stored<T>(rope_dim);
        return reinterpret_cast<const float*>(this->block_at(block) + block_tokens * numbers);
    }

    // Zero where a token is seen by nobody, as in SegmentBlocks::copy_values, and behind the last value of a short row.
    void turn(const T* keys, Seen seen, T* to) const {
        const int64_t dim = this->job.value_dim, width = padded_dim(this->job) * P::values;
        turn_block(keys, dim, reinterpret_cast<char*>(to), width * int64_t(sizeof(T)));
        if constexpr (P::scaled) return;
        for (int64_t unit = 0; unit < block_tokens / P::values; ++unit, to += width) {
            for (int64_t i = dim * P::values; i < width; ++i) to[i] = T{};
            for (int64_t i = 0; i < P::values; ++i) {
                const int64_t token = unit * P::values + i;
                if (token >= seen.first && token < seen.last) continue;
                for (int64_t d = 0; d < dim; ++d) to[d * P::values + i] = T{};
            }
        }
    }
};

// All heads over the same keys, taken in groups as if each had a KV head.
struct OverLatents {
    template <class T>
    using Blocks = LatentBlocks<T>;
    // Latent vectors and rotated keys differ in size: each has a scale of its own, where numbers have scales.
    template <class T>
    static constexpr int parts = Products<T>::scaled ? 2 : 1;

    template <class T>
    static KeyPart part(const Attend& job, int i) {
        if (parts<T> == 1) return {0, job.key_dim};
        return i == 0 ? KeyPart{0, job.value_dim} : KeyPart{job.value_dim, job.key_dim - job.value_dim};
    }

    template <class Q>
    struct Query {
        const Q* latent;
        const Q* rope;
        int64_t rank;
        Q operator[](int64_t i) const { return i < rank ? latent[i] : rope[i - rank]; }
    };

    template <class Q>
    static Query<Q> query(const Attend& attend, int64_t row, int64_t head) {
        const LatentAttend& job = static_cast<const LatentAttend&>(attend);
        const int64_t rank = job.value_dim, rope_dim = job.key_dim - rank;
        return {static_cast<const Q*>(job.q) + row * job.q_stride + head * rank,
                static_cast<const Q*>(job.q_rope) + row * job.q_rope_stride + head * rope_dim, rank};
    }
};

}  // namespace
}  // namespace headrace
