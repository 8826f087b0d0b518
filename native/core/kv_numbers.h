// Numbers of a cache in one byte each, as storage. Beside them lies a float for each token and head: their scale.
#pragma once

#include <cstdint>
#include <cstring>

namespace headrace {

// A whole number from -127 to 127, stored as n + 128.
struct q8 {
    uint8_t bits;
    static constexpr float most = 127.0f;
};

// Sign, 4 bits of exponent, 3 of fraction ("E4M3", arXiv 2209.05433), without subnormals: what is smaller than 2^-6 is zero.
struct e4m3 {
    uint8_t bits;
    static constexpr float most = 448.0f;
};

static inline uint32_t bits_of(float x) {
    uint32_t bits;
    std::memcpy(&bits, &x, sizeof bits);
    return bits;
}

static inline float float_of(uint32_t bits) {
    float x;
    std::memcpy(&x, &bits, sizeof x);
    return x;
}

// x, within +-127, to the nearest, ties to even.
static inline q8 rounded_to(q8, float x) { return {uint8_t(int32_t(__builtin_rintf(x)) + 128)}; }

// x, within +-448, to the nearest, ties to even.
static inline e4m3 rounded_to(e4m3, float x) {
    const uint32_t bits = bits_of(x), size = bits & 0x7fffffffu, sign = bits >> 24 & 0x80u;
    const uint32_t normal = ((size + 0x7ffffu + (size >> 20 & 1u)) >> 20) - (120u << 3);
    // The smallest is 2^-6; half a step below it rounds to it, and the rest to nothing.
    const uint32_t code = size >= 0x3c800000u ? normal : size >= 0x3c700000u ? 8u : 0u;
    return {uint8_t(sign | code)};
}

}  // namespace headrace
