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

// 2^x for x <= 0, and exactly 0 below -159, as for minus infinity: a polynomial of degree 5 on [-1/2, 1/2], fitted for the
// relative error, which with rounding stays below 1.7e-7; exactly 1 at 0. Lane by lane.
static inline Vec power_of_two_below(Vec x) {
    x = Vec::max(Vec::all(-160.0f), x);
    const Vec n = Vec::nearest(x);
    const Vec r = x - n;
    Vec p = Vec::all(0.0013264863518998027f);
    p = Vec::fma(p, r, Vec::all(0.009671516716480255f));
    p = Vec::fma(p, r, Vec::all(0.05550733208656311f));
    p = Vec::fma(p, r, Vec::all(0.24022242426872253f));
    p = Vec::fma(p, r, Vec::all(0.6931470036506653f));
    return Vec::times_power_of_two(Vec::fma(p, r, Vec::all(1.0f)), n);
}

static inline float power_of_two_below(float x) {
    float lanes[Vec::lanes];
    power_of_two_below(Vec::all(x)).store(lanes);
    return lanes[0];
}

static inline float exp_of(float x) {
    float lanes[Vec::lanes];
    exp(Vec::all(x)).store(lanes);
    return lanes[0];
}

}  // namespace
}  // namespace headrace
