// Vectors of 8 floats.
#pragma once

#include <immintrin.h>

#include "core/bf16.h"

namespace headrace {
namespace {

struct Vec {
    static constexpr int lanes = 8;
    __m256 v;

    static Vec zero() { return {_mm256_setzero_ps()}; }
    static Vec all(float x) { return {_mm256_set1_ps(x)}; }
    static Vec load(const float* p) { return {_mm256_loadu_ps(p)}; }
    static Vec load(const bf16* p) { return widened(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))); }
    // The first n values, zero behind them; nothing past them is read.
    static Vec load(const float* p, int n) { return whole(n) ? load(p) : Vec{_mm256_maskload_ps(p, mask(n))}; }
    static Vec load(const bf16* p, int n) {
        if (whole(n)) return load(p);
        alignas(16) bf16 part[lanes] = {};
        std::memcpy(part, p, sizeof(bf16) * n);
        return load(part);
    }
    // The first, or the second, of 8 pairs of bf16, given by their bits.
    static Vec lower_of_pairs(Vec bits) { return {_mm256_castsi256_ps(_mm256_slli_epi32(_mm256_castps_si256(bits.v), 16))}; }
    static Vec upper_of_pairs(Vec bits) {
        return {_mm256_and_ps(bits.v, _mm256_castsi256_ps(_mm256_set1_epi32(int(0xffff0000u))))};
    }
    void store(float* p) const { _mm256_storeu_ps(p, v); }
    void store(bf16* p) const { _mm_storeu_si128(reinterpret_cast<__m128i*>(p), rounded()); }
    void store(float* p, int n) const { whole(n) ? store(p) : _mm256_maskstore_ps(p, mask(n), v); }
    void store(bf16* p, int n) const {
        if (whole(n)) return store(p);
        alignas(16) bf16 part[lanes];
        store(part);
        std::memcpy(p, part, sizeof(bf16) * n);
    }

    friend Vec operator+(Vec a, Vec b) { return {_mm256_add_ps(a.v, b.v)}; }
    friend Vec operator-(Vec a, Vec b) { return {_mm256_sub_ps(a.v, b.v)}; }
    friend Vec operator*(Vec a, Vec b) { return {_mm256_mul_ps(a.v, b.v)}; }
    friend Vec operator/(Vec a, Vec b) { return {_mm256_div_ps(a.v, b.v)}; }
    // a * b + c with one rounding.
    static Vec fma(Vec a, Vec b, Vec c) { return {_mm256_fmadd_ps(a.v, b.v, c.v)}; }
    static Vec max(Vec a, Vec b) { return {_mm256_max_ps(a.v, b.v)}; }
    static Vec min(Vec a, Vec b) { return {_mm256_min_ps(a.v, b.v)}; }
    // To the nearest whole number, ties to even.
    static Vec nearest(Vec x) { return {_mm256_round_ps(x.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)}; }
    // x * 2^n for whole n from -160 to 127: in two steps, since 2^-160 is no float.
    static Vec times_power_of_two(Vec x, Vec n) {
        const __m256i whole = _mm256_cvtps_epi32(n.v), half = _mm256_srai_epi32(whole, 1);
        return x * power_of_two(half) * power_of_two(_mm256_sub_epi32(whole, half));
    }
    float largest() const {
        const __m128 four = _mm_max_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
        const __m128 two = _mm_max_ps(four, _mm_movehl_ps(four, four));
        return _mm_cvtss_f32(_mm_max_ss(two, _mm_shuffle_ps(two, two, 1)));
    }
    // The sum of all lanes: halves are added until one is left.
    float sum() const {
        const __m128 four = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
        const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
        return _mm_cvtss_f32(_mm_add_ss(two, _mm_shuffle_ps(two, two, 1)));
    }

    Vec rounded_to_bf16() const { return widened(rounded()); }

  private:
    // Known to be all lanes when this is compiled.
    static inline __attribute__((always_inline)) bool whole(int n) { return __builtin_constant_p(n) && n == lanes; }
    static Vec power_of_two(__m256i n) {
        return {_mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(n, _mm256_set1_epi32(127)), 23))};
    }
    static __m256i mask(int n) {
        return _mm256_cmpgt_epi32(_mm256_set1_epi32(n), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
    }
    static Vec widened(__m128i half) {
        return {_mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(half), 16))};
    }
    // As to_bf16.
    __m128i rounded() const {
        const __m256i bits = _mm256_castps_si256(v);
        const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
        const __m256i even = _mm256_srli_epi32(_mm256_add_epi32(_mm256_add_epi32(bits, _mm256_set1_epi32(0x7fff)), odd), 16);
        const __m256i quiet = _mm256_or_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(0x40));
        const __m256i nan = _mm256_castps_si256(_mm256_cmp_ps(v, v, _CMP_UNORD_Q));
        const __m256i result = _mm256_blendv_epi8(even, quiet, nan);
        return _mm_packus_epi32(_mm256_castsi256_si128(result), _mm256_extracti128_si256(result, 1));
    }
};

// Rows of a tile of a product: 12 sums of the 16 registers.
constexpr int tile_rows = 3;

}  // namespace
}  // namespace headrace
