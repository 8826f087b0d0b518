// Vectors of 4 floats.
#pragma once

#include <arm_neon.h>

#include "core/bf16.h"

namespace headrace {
namespace {

struct Vec {
    static constexpr int lanes = 4;
    float32x4_t v;

    static Vec zero() { return {vdupq_n_f32(0.0f)}; }
    static Vec all(float x) { return {vdupq_n_f32(x)}; }
    static Vec load(const float* p) { return {vld1q_f32(p)}; }
    static Vec load(const bf16* p) {
        return widened(vld1_u16(reinterpret_cast<const uint16_t*>(p)));
    }
    // The first n values, zero behind them; nothing past them is read.
    static Vec load(const float* p, int n) { return whole(n) ? load(p) : load_part(p, n); }
    static Vec load(const bf16* p, int n) { return whole(n) ? load(p) : load_part(p, n); }
    // The first, or the second, of 4 pairs of bf16, given by their bits.
    static Vec lower_of_pairs(Vec bits) { return {vreinterpretq_f32_u32(vshlq_n_u32(vreinterpretq_u32_f32(bits.v), 16))}; }
    static Vec upper_of_pairs(Vec bits) {
        return {vreinterpretq_f32_u32(vandq_u32(vreinterpretq_u32_f32(bits.v), vdupq_n_u32(0xffff0000u)))};
    }
    void store(float* p) const { vst1q_f32(p, v); }
    void store(bf16* p) const { vst1_u16(reinterpret_cast<uint16_t*>(p), rounded()); }
    void store(float* p, int n) const { whole(n) ? store(p) : store_part(p, n); }
    void store(bf16* p, int n) const { whole(n) ? store(p) : store_part(p, n); }

    friend Vec operator+(Vec a, Vec b) { return {vaddq_f32(a.v, b.v)}; }
    friend Vec operator-(Vec a, Vec b) { return {vsubq_f32(a.v, b.v)}; }
    friend Vec operator*(Vec a, Vec b) { return {vmulq_f32(a.v, b.v)}; }
    friend Vec operator/(Vec a, Vec b) { return {vdivq_f32(a.v, b.v)}; }
    // a * b + c with one rounding.
    static Vec fma(Vec a, Vec b, Vec c) { return {vfmaq_f32(c.v, a.v, b.v)}; }
    static Vec max(Vec a, Vec b) { return {vbslq_f32(vcgtq_f32(a.v, b.v), a.v, b.v)}; }
    static Vec min(Vec a, Vec b) { return {vbslq_f32(vcltq_f32(a.v, b.v), a.v, b.v)}; }
    // To the nearest whole number, ties to even.
    static Vec nearest(Vec x) { return {vrndnq_f32(x.v)}; }
    // x * 2^n for whole n from -160 to 127: in two steps, since 2^-160 is no float.
    static Vec times_power_of_two(Vec x, Vec n) {
        const int32x4_t whole = vcvtq_s32_f32(n.v), half = vshrq_n_s32(whole, 1);
        return x * power_of_two(half) * power_of_two(vsubq_s32(whole, half));
    }
    float largest() const {
        return vmaxvq_f32(v);
    }
    // The sum of all lanes: halves are added until one is left.
    float sum() const {
        const float32x2_t two = vadd_f32(vget_low_f32(v), vget_high_f32(v));
        return vget_lane_f32(two, 0) + vget_lane_f32(two, 1);
    }

    Vec rounded_to_bf16() const { return widened(rounded()); }

  private:
    // Known to be all lanes when this is compiled.
    static inline __attribute__((always_inline)) bool whole(int n) { return __builtin_constant_p(n) && n == lanes; }
    static Vec widened(uint16x4_t half) { return {vreinterpretq_f32_u32(vshll_n_u16(half, 16))}; }
    static Vec power_of_two(int32x4_t n) {
        return {vreinterpretq_f32_s32(vshlq_n_s32(vaddq_s32(n, vdupq_n_s32(127)), 23))};
    }
    template <class T>
    static Vec load_part(const T* p, int n) {
        T part[lanes] = {};
        std::memcpy(part, p, sizeof(T) * n);
        return load(part);
    }
    template <class T>
    void store_part(T* p, int n) const {
        T part[lanes];
        store(part);
        std::memcpy(p, part, sizeof(T) * n);
    }
    // As to_bf16.
    uint16x4_t rounded() const {
        const uint32x4_t bits = vreinterpretq_u32_f32(v);
        const uint32x4_t odd = vandq_u32(vshrq_n_u32(bits, 16), vdupq_n_u32(1));
        const uint32x4_t even = vshrq_n_u32(vaddq_u32(vaddq_u32(bits, vdupq_n_u32(0x7fff)), odd), 16);
        const uint32x4_t quiet = vorrq_u32(vshrq_n_u32(bits, 16), vdupq_n_u32(0x40));
        return vmovn_u32(vbslq_u32(vceqq_f32(v, v), even, quiet));
    }
};

// Rows of a tile of a product: 24 sums of the 32 registers.
constexpr int tile_rows = 3;

}  // namespace
}  // namespace headrace
