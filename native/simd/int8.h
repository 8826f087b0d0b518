// Products of bytes, summed in 32 bits, and half precision to fp32, over the vectors of a level.
//
// Bytes are 4 unsigned weights for each of Vec::lanes outputs. `Sums` adds their products with the same 4 signed values
// of x. Where a level can multiply only signed bytes, those of 8 bits are taken as u - 128 instead of u: `byte_offset` is
// 128 there, and sums start so that it cancels. `hide` keeps the compiler from knowing the bytes, for benchmarks.
#pragma once

#include "core/half.h"

namespace headrace {
namespace {

#if defined(__AVX512VNNI__)

constexpr int byte_offset = 0;
// Rows of a tile of sums: 24 of the 32 registers.
constexpr int byte_tile_rows = 12;
// Where totals go with the sums: what more rows would take to and from memory costs more than weights read twice.
constexpr int block_tile_rows = 8;

struct Bytes {
    __m512i v;
    static Bytes load(const char* p) { return {_mm512_loadu_si512(p)}; }
    static Bytes all(char x) { return {_mm512_set1_epi8(x)}; }
    void hide() { asm volatile("" : "+v"(v)); }
    Bytes low_halves() const { return {_mm512_and_si512(v, _mm512_set1_epi8(15))}; }
    Bytes high_halves() const { return {_mm512_and_si512(_mm512_srli_epi16(v, 4), _mm512_set1_epi8(15))}; }
};

struct Sums {
    __m512i v;
    static Sums all(int32_t x) { return {_mm512_set1_epi32(x)}; }
    // `bits` is those of w.
    // Written out: behind the intrinsic GCC 12 copies the sums of a tile to and fro, most of them through memory.
    template <int bits>
    void add_products(Bytes w, int32_t x) {
        asm("vpdpbusd %2, %1, %0" : "+v"(v) : "v"(w.v), "v"(_mm512_set1_epi32(x)));
    }
    Vec to_floats() const { return {_mm512_cvtepi32_ps(v)}; }
};

static inline Vec load_halves(const half* p) {
    return {_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)))};
}

#elif defined(__AVX2__)

constexpr int byte_offset = 128;
constexpr int byte_tile_rows = 2;
constexpr int block_tile_rows = 2;

struct Bytes {
    __m256i v;
    static Bytes load(const char* p) { return {_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p))}; }
    static Bytes all(char x) { return {_mm256_set1_epi8(x)}; }
    void hide() { asm volatile("" : "+x"(v)); }
    Bytes low_halves() const { return {_mm256_and_si256(v, _mm256_set1_epi8(15))}; }
    Bytes high_halves() const { return {_mm256_and_si256(_mm256_srli_epi16(v, 4), _mm256_set1_epi8(15))}; }
};

struct Sums {
    __m256i v;
    static Sums all(int32_t x) { return {_mm256_set1_epi32(x)}; }
    template <int bits>
    void add_products(Bytes w, int32_t x) {
        // Pairs are added in 16 bits: 2 * 15 * 127 and 2 * 128 * 127 are within them.
        __m256i size = w.v, other = _mm256_set1_epi32(x);
        if constexpr (bits == 8) {
            const __m256i value = _mm256_xor_si256(w.v, _mm256_set1_epi8(char(0x80)));
            size = _mm256_abs_epi8(value);
            other = _mm256_sign_epi8(other, value);
        }
        v = _mm256_add_epi32(v, _mm256_madd_epi16(_mm256_maddubs_epi16(size, other), _mm256_set1_epi16(1)));
    }
    Vec to_floats() const { return {_mm256_cvtepi32_ps(v)}; }
};

static inline Vec load_halves(const half* p) {
    return {_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)))};
}

#elif defined(__ARM_NEON)

constexpr int byte_offset = 128;
constexpr int byte_tile_rows = 2;
constexpr int block_tile_rows = 2;

struct Bytes {
    uint8x16_t v;
    static Bytes load(const char* p) { return {vld1q_u8(reinterpret_cast<const uint8_t*>(p))}; }
    static Bytes all(char x) { return {vdupq_n_u8(uint8_t(x))}; }
    void hide() { asm volatile("" : "+w"(v)); }
    Bytes low_halves() const { return {vandq_u8(v, vdupq_n_u8(15))}; }
    Bytes high_halves() const { return {vshrq_n_u8(v, 4)}; }
};

struct Sums {
    int32x4_t v;
    static Sums all(int32_t x) { return {vdupq_n_s32(x)}; }
    template <int bits>
    void add_products(Bytes w, int32_t x) {
        const int8x16_t value = vreinterpretq_s8_u8(bits == 8 ? veorq_u8(w.v, vdupq_n_u8(0x80)) : w.v);
        const int8x16_t other = vreinterpretq_s8_s32(vdupq_n_s32(x));
        const int32x4_t low = vpaddlq_s16(vmull_s8(vget_low_s8(value), vget_low_s8(other)));
        const int32x4_t high = vpaddlq_s16(vmull_s8(vget_high_s8(value), vget_high_s8(other)));
        v = vaddq_s32(v, vpaddq_s32(low, high));
    }
    Vec to_floats() const { return {vcvtq_f32_s32(v)}; }
};

static inline Vec load_halves(const half* p) {
    return {vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(reinterpret_cast<const uint16_t*>(p))))};
}

#endif

}  // namespace
}  // namespace headrace
