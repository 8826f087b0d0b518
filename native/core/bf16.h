// bfloat16 as storage: the upper half of an IEEE float.
#pragma once

#include <cstdint>
#include <cstring>

namespace headrace {

struct bf16 {
    uint16_t bits;
};

static inline float to_float(bf16 x) {
    const uint32_t wide = uint32_t(x.bits) << 16;
    float result;
    std::memcpy(&result, &wide, sizeof result);
    return result;
}

static inline float to_float(float x) { return x; }

// Nearest, ties to even; a NaN stays one.
static inline bf16 to_bf16(float x) {
    uint32_t wide;
    std::memcpy(&wide, &x, sizeof wide);
    if ((wide & 0x7fffffffu) > 0x7f800000u) return {uint16_t((wide >> 16) | 0x40u)};
    return {uint16_t((wide + 0x7fffu + ((wide >> 16) & 1u)) >> 16)};
}

// A value in the type T.
template <class T, class S>
static inline T converted(S x) {
    if constexpr (sizeof(T) == sizeof(S))
        return x;
    else if constexpr (sizeof(T) == sizeof(bf16))
        return to_bf16(x);
    else
        return to_float(x);
}

}  // namespace headrace
