// One unit of k for a tile: the products of panel values with packed values of x, added to the sums.
//
// Dot<T>: `values` of k in a unit; `x_bytes` of a packed unit of x; `put` packs one; `multiply_add` adds `products` products
// to each lane of a vector, from bits as they lie in a panel or, where x is widened, from floats; `step` adds a unit to a tile,
// whose rows lie x_stride bytes apart; `step_pairs` does for pairs of bf16 whose bits a function gives, vector by vector;
// `put_weights` packs 2 vectors of weights for it and returns `sum` plus the weights as
// they were rounded, lane by lane in a fixed order.
#pragma once

#include <cstring>

#include "core/bf16.h"
#include "core/dtype.h"

namespace headrace {
namespace {

template <class T>
struct Dot;

template <>
struct Dot<float> {
    static constexpr Dtype dtype = Dtype::f32;
    static constexpr int values = 1;
    static constexpr int x_bytes = 4;

    static constexpr int products = 1;  // of a lane in multiply_add

    static void put(const float* x, char* to) { std::memcpy(to, x, 4); }
    static Vec put_weights(Vec a, Vec b, char* to, Vec sum) {
        a.store(reinterpret_cast<float*>(to));
        b.store(reinterpret_cast<float*>(to) + Vec::lanes);
        return sum + a + b;
    }
    static Vec multiply_add(Vec a, Vec b, Vec sum) { return Vec::fma(a, b, sum); }

    template <int rows, int vecs, int x_stride = x_bytes>
    static inline __attribute__((always_inline)) void step(const char* w, const char* x, Vec (&sums)[rows][vecs]) {
        const float* weights = reinterpret_cast<const float*>(w);
        Vec part[vecs];
        for (int v = 0; v < vecs; ++v) part[v] = Vec::load(weights + v * Vec::lanes);
        for (int r = 0; r < rows; ++r) {
            const Vec value = Vec::all(*reinterpret_cast<const float*>(x + r * x_stride));
            for (int v = 0; v < vecs; ++v) sums[r][v] = Vec::fma(value, part[v], sums[r][v]);
        }
    }
};

// Pairs as they lie in memory.
struct PairsAt {
    const char* memory;
    inline __attribute__((always_inline)) Vec operator()(int v) const {
        return Vec::load(reinterpret_cast<const float*>(memory) + v * Vec::lanes);
    }
};

#if defined(__AVX512BF16__)

// One instruction adds both products of a pair, always in the same order.
template <>
struct Dot<bf16> {
    static constexpr Dtype dtype = Dtype::bf16;
    static constexpr int values = 2;
    static constexpr int x_bytes = 4;

    static constexpr int products = 2;

    static void put(const bf16* x, char* to) { std::memcpy(to, x, 4); }
    static Vec put_weights(Vec a, Vec b, char* to, Vec sum) {
        const __m512bh both = _mm512_cvtne2ps_pbh(b.v, a.v);
        _mm512_storeu_si512(to, (__m512i)both);
        return {_mm512_dpbf16_ps(sum.v, both, (__m512bh)_mm512_set1_epi16(0x3f80))};  // times 1
    }
    static Vec multiply_add(Vec a, Vec b, Vec sum) {
        return {_mm512_dpbf16_ps(sum.v, (__m512bh)_mm512_castps_si512(a.v), (__m512bh)_mm512_castps_si512(b.v))};
    }

    template <int rows, int vecs, int x_stride = x_bytes>
    static inline __attribute__((always_inline)) void step(const char* w, const char* x, Vec (&sums)[rows][vecs]) {
        step_pairs<rows, vecs, x_stride>(PairsAt{w}, x, sums);
    }

    template <int rows, int vecs, int x_stride = x_bytes, class Pairs>
    static inline __attribute__((always_inline)) void step_pairs(const Pairs& pairs, const char* x, Vec (&sums)[rows][vecs]) {
        Vec part[vecs];
        for (int v = 0; v < vecs; ++v) part[v] = pairs(v);
        for (int r = 0; r < rows; ++r) {
            const Vec value = Vec::all(*reinterpret_cast<const float*>(x + r * x_stride));
            for (int v = 0; v < vecs; ++v) sums[r][v] = multiply_add(value, part[v], sums[r][v]);
        }
    }
};

#else

// Widened to fp32: the lower value of a pair first, then the upper.
template <>
struct Dot<bf16> {
    static constexpr Dtype dtype = Dtype::bf16;
    static constexpr int values = 2;
    static constexpr int x_bytes = 8;

    static constexpr int products = 1;

    static Vec multiply_add(Vec a, Vec b, Vec sum) { return Vec::fma(a, b, sum); }
    static void put(const bf16* x, char* to) {
        const float wide[2] = {to_float(x[0]), to_float(x[1])};
        std::memcpy(to, wide, 8);
    }
    static Vec put_weights(Vec a, Vec b, char* to, Vec sum) {
        bf16 rounded[2 * Vec::lanes];
        a.store(rounded);
        b.store(rounded + Vec::lanes);
        const Vec wide_a = Vec::load(rounded), wide_b = Vec::load(rounded + Vec::lanes);
        wide_a.store(reinterpret_cast<float*>(to));
        wide_b.store(reinterpret_cast<float*>(to) + Vec::lanes);
        return sum + wide_a + wide_b;
    }

    template <int rows, int vecs, int x_stride = x_bytes>
    static inline __attribute__((always_inline)) void step(const char* w, const char* x, Vec (&sums)[rows][vecs]) {
        step_pairs<rows, vecs, x_stride>(PairsAt{w}, x, sums);
    }

    template <int rows, int vecs, int x_stride = x_bytes, class Pairs>
    static inline __attribute__((always_inline)) void step_pairs(const Pairs& pairs, const char* x, Vec (&sums)[rows][vecs]) {
        for (int v = 0; v < vecs; ++v) {
            const Vec bits = pairs(v), lower = Vec::lower_of_pairs(bits), upper = Vec::upper_of_pairs(bits);
            for (int r = 0; r < rows; ++r) {
                const float* value = reinterpret_cast<const float*>(x + r * x_stride);
                sums[r][v] = Vec::fma(Vec::all(value[1]), upper, Vec::fma(Vec::all(value[0]), lower, sums[r][v]));
            }
        }
    }
};

#endif

}  // namespace
}  // namespace headrace
