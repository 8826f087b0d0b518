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

}  // namespace headrace
