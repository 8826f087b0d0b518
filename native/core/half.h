// IEEE half precision as storage.
#pragma once

#include <cstdint>
#include <cstring>

namespace headrace {

struct half {
    uint16_t bits;
};

// Exact. A NaN stays one.
static inline float to_float(half x) {
    const uint32_t sign = uint32_t(x.bits & 0x8000u) << 16, exponent = (x.bits >> 10) & 31u, fraction = x.bits & 1023u;
    if (exponent == 0) {  // zero, or a subnormal: a whole number of 2^-24
        const float size = float(fraction) * 0x1p-24f;
        return sign ? -size : size;
    }
    const uint32_t wide = sign | ((exponent == 31 ? 255u : exponent + 112u) << 23) | (fraction << 13);
    float result;
    std::memcpy(&result, &wide, sizeof result);
    return result;
}

// To nearest, ties to even; infinite from 65,520 on.
static inline half to_half(float x) {
    uint32_t bits;
    std::memcpy(&bits, &x, sizeof bits);
    const uint32_t sign = bits >> 16 & 0x8000u, size = bits & 0x7fffffffu;
    if (size > 0x7f800000u) return {uint16_t(sign | 0x7e00u)};
    if (size >= 0x477ff000u) return {uint16_t(sign | 0x7c00u)};
    if (size < 0x38800000u) {  // below 2^-14: a whole number of 2^-24, rounded where 2^-24 is the last bit of a float
        float value;
        std::memcpy(&value, &size, sizeof value);
        value += 0.5f;
        uint32_t sum;
        std::memcpy(&sum, &value, sizeof sum);
        return {uint16_t(sign | (sum - 0x3f000000u))};
    }
    const uint32_t rounded = size + 0xfffu + (size >> 13 & 1u);
    return {uint16_t(sign | ((rounded - 0x38000000u) >> 13))};
}

}  // namespace headrace
