// exp, log, masses and noise of the draw: the operation sequences of docs/sampling.md, which fix every bit.
// Also the order of tokens within a row.
#pragma once

#include <cstdint>
#include <cstring>

#include "kernels/sampler_args.h"

namespace headrace {
namespace {

// Formulas are templates over what they are computed of: one number here, or as many as a vector has (`Lanes`). Plain
// operators say the same of both, so the bits are the same.
struct Lane {
    using F = float;
    using I = int32_t;
    using U = uint32_t;

    static I to_int(F x) { return I(x); }
    static F to_float(I x) { return F(x); }
    static F all(float x) { return x; }
};

template <class To, class From>
inline To bits_as(From x) {
    static_assert(sizeof(To) == sizeof(From));
    To result;
    std::memcpy(&result, &x, sizeof result);
    return result;
}

constexpr float mass_one = 0x1p40f;

// exp of x <= 0.
template <class L>
inline typename L::F exp_neg(typename L::F x) {
    using F = typename L::F;
    using I = typename L::I;
    x = x > L::all(-64.0f) ? x : L::all(-64.0f);
    const F exponent = x * 1.44269504088896341f + 0.5f;
    const I toward_zero = L::to_int(exponent);
    const I floor = toward_zero + (bits_as<I>(exponent - L::to_float(toward_zero)) >> 31);
    const F k = L::to_float(floor);
    const F r = (x - k * 0.693359375f) - k * -2.12194440e-4f;
    F p = L::all(1.9875691500e-4f);
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = ((p * r) * r + r) + 1.0f;
    return p * bits_as<F>((floor + 127) << 23);
}

// The mass before it is cut to a whole number.
template <class L>
inline typename L::F whole_mass(typename L::F y) {
    return exp_neg<L>(y) * mass_one;
}

inline int64_t mass_of(float y) { return int64_t(whole_mass<Lane>(y)); }

// Natural logarithm of a positive normal number.
inline double log_of(double x) {
    uint64_t bits;
    std::memcpy(&bits, &x, sizeof bits);
    const uint32_t high = uint32_t(bits >> 32);
    const uint32_t m = high & 0xFFFFF;
    const uint32_t i = (m + 0x95F64) & 0x100000;
    const double k = double(int32_t(high >> 20) - 1023 + int32_t(i >> 20));
    const uint64_t part = uint64_t(m | (i ^ 0x3FF00000)) << 32 | (bits & 0xFFFFFFFF);
    double f;
    std::memcpy(&f, &part, sizeof f);
    f -= 1.0;
    const double s = f / (f + 2.0);
    const double z = s * s;
    const double w = z * z;
    const double t1 = w * (3.999999999940941908e-01 + w * (2.222219843214978396e-01 + w * 1.531383769920937332e-01));
    const double t2 = z * (6.666666666666735130e-01 +
                           w * (2.857142874366239149e-01 +
                                w * (1.818357216161805012e-01 + w * 1.479819860511658591e-01)));
    const double h = (f * 0.5) * f;
    return k * 6.93147180369123816490e-01 - ((h - (s * (h + (t1 + t2)) + k * 1.90821492927058770002e-10)) - f);
}

// How long a token waits; its mass is above 0.
inline double wait_of(uint32_t noise, int64_t mass) {
    const double u = double(2 * uint64_t(noise) + 1) * 0x1p-33;
    return -log_of(u) / double(mass);
}

inline void philox_round(uint32_t (&c)[4], uint32_t k0, uint32_t k1) {
    const uint64_t p0 = uint64_t(c[0]) * 0xD2511F53u;
    const uint64_t p1 = uint64_t(c[2]) * 0xCD9E8D57u;
    c[0] = uint32_t(p1 >> 32) ^ c[1] ^ k0;
    c[2] = uint32_t(p0 >> 32) ^ c[3] ^ k1;
    c[1] = uint32_t(p1);
    c[3] = uint32_t(p0);
}

// The noise words of tokens 4 group .. 4 group + 3. The rounds are written out so that a loop over groups vectorises.
inline void noise_of(const Stream& stream, uint32_t group, uint32_t (&c)[4]) {
    constexpr uint32_t step0 = 0x9E3779B9u, step1 = 0xBB67AE85u;
    const uint32_t a = stream.seed_low, b = stream.seed_high;
    c[0] = group;
    c[1] = stream.position;
    c[2] = stream.output_index;
    c[3] = 0;
    philox_round(c, a, b);
    philox_round(c, a + 1 * step0, b + 1 * step1);
    philox_round(c, a + 2 * step0, b + 2 * step1);
    philox_round(c, a + 3 * step0, b + 3 * step1);
    philox_round(c, a + 4 * step0, b + 4 * step1);
    philox_round(c, a + 5 * step0, b + 5 * step1);
    philox_round(c, a + 6 * step0, b + 6 * step1);
    philox_round(c, a + 7 * step0, b + 7 * step1);
    philox_round(c, a + 8 * step0, b + 8 * step1);
    philox_round(c, a + 9 * step0, b + 9 * step1);
}

// Places in the order of a row: smaller for larger y <= 0.
template <class L>
inline typename L::U order_of_scaled(typename L::F y) {
    return bits_as<typename L::U>(y) & 0x7fffffffu;
}

inline float scaled_of_order(uint32_t order) { return bits_as<float>(order | 0x80000000u); }

// Smaller for larger x; -0 counts as 0.
template <class L>
inline typename L::U order_of_logit(typename L::F x) {
    using U = typename L::U;
    const U bits = bits_as<U>(x + 0.0f);
    return bits ^ (~bits_as<U>(bits_as<typename L::I>(bits) >> 31) & 0x7fffffffu);
}

template <class L, bool scaled>
inline typename L::U order_in(const RowView& row, typename L::F x) {
    return scaled ? order_of_scaled<L>((x - row.top) / row.temperature) : order_of_logit<L>(x);
}

inline uint32_t order_in(const RowView& row, float x) {
    return row.scaled ? order_in<Lane, true>(row, x) : order_in<Lane, false>(row, x);
}

constexpr uint64_t last_key(uint32_t order) { return uint64_t(order) << 32 | 0xFFFFFFFFu; }

// The last key that is not of a token at -inf.
inline uint64_t whole_row(const RowView& row) { return last_key(row.scaled ? 0x7f7fffffu : 0xff7fffffu); }

constexpr uint32_t bucket_base = 116 << 7;

template <class L>
inline typename L::I bucket_of(typename L::U order) {
    using I = typename L::I;
    const I bucket = bits_as<I>(order >> 16) - int32_t(bucket_base);
    const I least = I{}, most = I{} + int32_t(n_buckets - 1);
    const I from_zero = bucket < least ? least : bucket;
    return from_zero > most ? most : from_zero;
}

}  // namespace
}  // namespace headrace
