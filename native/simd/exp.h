// exp by range reduction: x = n ln 2 + r, exp(r) by a polynomial (coefficients of Cephes' expf), times 2^n.
#pragma once

namespace headrace {
namespace {

// Within 2 units in the last place up to x = 88, infinite from 89 on, 0 below -104. Lane by lane.
static inline Vec exp(Vec x) {
    // In this order of arguments a NaN stays one.
    x = Vec::min(Vec::all(89.0f), Vec::max(Vec::all(-104.0f), x));
    const Vec n = Vec::nearest(x * Vec::all(1.44269504088896341f));
    const Vec r = Vec::fma(n, Vec::all(2.12194440e-4f), Vec::fma(n, Vec::all(-0.693359375f), x));
    Vec p = Vec::all(1.9875691500e-4f);
    p = Vec::fma(p, r, Vec::all(1.3981999507e-3f));
    p = Vec::fma(p, r, Vec::all(8.3334519073e-3f));
    p = Vec::fma(p, r, Vec::all(4.1665795894e-2f));
    p = Vec::fma(p, r, Vec::all(1.6666665459e-1f));
    p = Vec::fma(p, r, Vec::all(5.0000001201e-1f));
    p = Vec::fma(p, r * r, r) + Vec::all(1.0f);
    return Vec::times_power_of_two(p, n);
}

static inline float exp_of(float x) {
    float lanes[Vec::lanes];
    exp(Vec::all(x)).store(lanes);
    return lanes[0];
}

}  // namespace
}  // namespace headrace
