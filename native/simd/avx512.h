// Vectors of 16 floats.
#pragma once

#include <immintrin.h>

#include "core/bf16.h"

namespace headrace {
namespace {

struct Vec {
    static constexpr int lanes = 16;
    __m512 v;

    static Vec zero() { return {_mm512_setzero_ps()}; }
    static Vec all(float x) { return {_mm512_set1_ps(x)}; }
    static Vec load(const float* p) { return {_mm512_loadu_ps(p)}; }
    static Vec load(const bf16* p) {
        const __m512i wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
        return {_mm512_castsi512_ps(_mm512_slli_epi32(wide, 16))};
    }
    // The first n values, zero behind them; nothing past them is read.
    static Vec load(const float* p, int n) { return whole(n) ? load(p) : Vec{_mm512_maskz_loadu_ps(mask(n), p)}; }
    static Vec load(const bf16* p, int n) {
        if (whole(n)) return load(p);
        const __m512i wide = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(mask(n), p));
        return {_mm512_castsi512_ps(_mm512_slli_epi32(wide, 16))};
    }
    void store(float* p) const { _mm512_storeu_ps(p, v); }
    void store(bf16* p) const { _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), rounded()); }
    void store(float* p, int n) const { whole(n) ? store(p) : _mm512_mask_storeu_ps(p, mask(n), v); }
    void store(bf16* p, int n) const { whole(n) ? store(p) : _mm256_mask_storeu_epi16(p, mask(n), rounded()); }

    friend Vec operator+(Vec a, Vec b) { return {_mm512_add_ps(a.v, b.v)}; }
    friend Vec operator-(Vec a, Vec b) { return {_mm512_sub_ps(a.v, b.v)}; }
    friend Vec operator*(Vec a, Vec b) { return {_mm512_mul_ps(a.v, b.v)}; }
    friend Vec operator/(Vec a, Vec b) { return {_mm512_div_ps(a.v, b.v)}; }
    // a * b + c with one rounding.
    static Vec fma(Vec a, Vec b, Vec c) { return {_mm512_fmadd_ps(a.v, b.v, c.v)}; }
    static Vec max(Vec a, Vec b) { return {_mm512_max_ps(a.v, b.v)}; }
    static Vec min(Vec a, Vec b) { return {_mm512_min_ps(a.v, b.v)}; }
    // To the nearest whole number, ties to even.
    static Vec nearest(Vec x) { return {_mm512_roundscale_ps(x.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)}; }
    // x * 2^n for whole n from -160 to 127.
    static Vec times_power_of_two(Vec x, Vec n) { return {_mm512_scalef_ps(x.v, n.v)}; }
    float largest() const {
        return _mm512_reduce_max_ps(v);
    }
    // The sum of all lanes: halves are added until one is left.
    float sum() const {
        const __m256 eight = _mm256_add_ps(_mm512_castps512_ps256(v), _mm512_extractf32x8_ps(v, 1));
        const __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
        const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
        return _mm_cvtss_f32(_mm_add_ss(two, _mm_shuffle_ps(two, two, 1)));
    }

    Vec rounded_to_bf16() const {
        return {_mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(rounded()), 16))};
    }

  private:
    // Known to be all lanes when this is compiled.
    static inline __attribute__((always_inline)) bool whole(int n) { return __builtin_constant_p(n) && n == lanes; }
    static __mmask16 mask(int n) { return __mmask16((1u << n) - 1u); }
    // As to_bf16: the instruction for it would flush subnormals.
    __m256i rounded() const {
        const __m512i bits = _mm512_castps_si512(v);
        const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
        const __m512i even = _mm512_srli_epi32(_mm512_add_epi32(_mm512_add_epi32(bits, _mm512_set1_epi32(0x7fff)), odd), 16);
        const __m512i quiet = _mm512_or_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(0x40));
        return _mm512_cvtepi32_epi16(_mm512_mask_mov_epi32(even, _mm512_cmp_ps_mask(v, v, _CMP_UNORD_Q), quiet));
    }
};

// Rows of a tile of a product: 24 sums of the 32 registers.
constexpr int tile_rows = 12;

}  // namespace
}  // namespace headrace
