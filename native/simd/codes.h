// Floats of few bits, over the vectors of a level: e2m1 as unsigned bytes, twice its value and 12; e4m3 as floats, the
// value times 2^-8, which is that of its bits in the places of a half's.
#pragma once

#include "simd/int8.h"

namespace headrace {
namespace {

constexpr uint8_t e2m1_table[16] = {12, 13, 14, 15, 16, 18, 20, 24, 12, 11, 10, 9, 8, 6, 4, 0};

#if defined(__AVX512VNNI__)

static inline Bytes e2m1_numbers(Bytes codes) {
    const __m128i table = _mm_loadu_si128(reinterpret_cast<const __m128i*>(e2m1_table));
    return {_mm512_shuffle_epi8(_mm512_broadcast_i32x4(table), codes.v)};
}

static inline Vec load_e4m3(const char* p) {
    const __m256i wide = _mm256_cvtepu8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
    const __m256i moved = _mm256_srai_epi16(_mm256_slli_epi16(wide, 8), 1);
    return {_mm512_cvtph_ps(_mm256_and_si256(moved, _mm256_set1_epi16(short(0xbfff))))};
}

#elif defined(__AVX2__)

static inline Bytes e2m1_numbers(Bytes codes) {
    const __m128i table = _mm_loadu_si128(reinterpret_cast<const __m128i*>(e2m1_table));
    return {_mm256_shuffle_epi8(_mm256_broadcastsi128_si256(table), codes.v)};
}

static inline Vec load_e4m3(const char* p) {
    const __m128i wide = _mm_cvtepu8_epi16(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p)));
    const __m128i moved = _mm_srai_epi16(_mm_slli_epi16(wide, 8), 1);
    return {_mm256_cvtph_ps(_mm_and_si128(moved, _mm_set1_epi16(short(0xbfff))))};
}

#elif defined(__ARM_NEON)

static inline Bytes e2m1_numbers(Bytes codes) { return {vqtbl1q_u8(vld1q_u8(e2m1_table), codes.v)}; }

static inline Vec load_e4m3(const char* p) {
    uint32_t four;
    std::memcpy(&four, p, 4);
    const uint16x4_t wide = vget_low_u16(vmovl_u8(vreinterpret_u8_u32(vdup_n_u32(four))));
    const int16x4_t moved = vshr_n_s16(vreinterpret_s16_u16(vshl_n_u16(wide, 8)), 1);
    return {vcvt_f32_f16(vreinterpret_f16_u16(vand_u16(vreinterpret_u16_s16(moved), vdup_n_u16(0xbfff))))};
}

#endif

}  // namespace
}  // namespace headrace
