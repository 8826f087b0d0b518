// Activations and sums, value by value, and the rotation of heads.
#pragma once

#include <math.h>

#include "kernels/elementwise_args.h"
#include "kernels/vectors.h"
#include "simd/exp.h"

namespace headrace {
namespace {

static inline Vec sigmoid(Vec x) { return Vec::all(1.0f) / (Vec::all(1.0f) + exp(Vec::zero() - x)); }

static inline Vec silu(Vec x) { return x / (Vec::all(1.0f) + exp(Vec::zero() - x)); }

// 0.5 x (1 + tanh(u)) = x / (1 + exp(-2 u)), u = sqrt(2 / pi) (x + 0.044715 x^3).
static inline Vec gelu_tanh(Vec x) {
    const Vec cubic = Vec::fma(x * x * x, Vec::all(0.044715f), x);
    return x / (Vec::all(1.0f) + exp(cubic * Vec::all(-2.0f * 0.7978845608028654f)));
}

static inline Vec tanh(Vec x) {
    const Vec e = exp(x + x);
    // Where e is infinite the quotient is not a number, and the limit is 1.
    return Vec::all(1.0f) - Vec::all(2.0f) / (e + Vec::all(1.0f));
}

static inline Vec clamped_glu(Vec gate, Vec up, Vec limit) {
    gate = Vec::min(gate, limit);
    up = Vec::max(Vec::min(up, limit), Vec::zero() - limit);
    const Vec one = Vec::all(1.0f);
    return (up + one) * (gate / (one + exp(gate * Vec::all(-1.702f))));
}

// x * (1 + erf(x / sqrt(2))) / 2 = max(x, 0) - |x| h with h = erfc(|x| / sqrt(2)) / 2. The approximation of erfc is
// Chebyshev's, within 1.2e-7 of its value everywhere (Press et al., Numerical Recipes, 6.2).
static inline Vec gelu(Vec x) {
    constexpr float c[] = {0.17087277f,  -0.82215223f, 1.48851587f, -1.13520398f, 0.27886807f,
                           -0.18628806f, 0.09678418f,  0.37409196f, 1.00002368f,  -1.26551223f};
    // Beyond 40 h is zero, and infinity times zero is not a number.
    const Vec size = Vec::min(Vec::max(x, Vec::zero() - x), Vec::all(40.0f));
    const Vec z = size * Vec::all(0.70710678118654752f);
    const Vec t = Vec::all(1.0f) / Vec::fma(z, Vec::all(0.5f), Vec::all(1.0f));
    Vec p = Vec::all(c[0]);
    for (int i = 1; i < 10; ++i) p = Vec::fma(p, t, Vec::all(c[i]));
    const Vec h = t * exp(Vec::fma(Vec::zero() - z, z, p)) * Vec::all(0.5f);
    return Vec::fma(Vec::zero() - size, h, Vec::max(Vec::zero(), x));
}

template <Elementwise kind, class T>
inline __attribute__((always_inline)) Vec element(const ElementwiseRows& job, const T* x, const T* other, int n) {
    const Vec value = Vec::load(x, n);
    if constexpr (kind == Elementwise::silu_mul) return silu(value) * Vec::load(x + job.size, n);
    if constexpr (kind == Elementwise::gelu_tanh_mul) return gelu_tanh(value) * Vec::load(x + job.size, n);
    if constexpr (kind == Elementwise::relu_squared) {
        const Vec positive = Vec::max(Vec::zero(), value);
        return positive * positive;
    }
    if constexpr (kind == Elementwise::gelu) return gelu(value);
    if constexpr (kind == Elementwise::soft_cap) return tanh(value / Vec::all(job.c)) * Vec::all(job.c);
    if constexpr (kind == Elementwise::add) return value + Vec::load(other, n);
    if constexpr (kind == Elementwise::sigmoid_mul) return value * sigmoid(Vec::load(other, n));
    if constexpr (kind == Elementwise::row_sigmoid_mul) return value * sigmoid(Vec::all(to_float(*other)));
    if constexpr (kind == Elementwise::clamped_glu) return clamped_glu(value, Vec::load(x + job.size, n), Vec::all(job.c));
    if constexpr (kind == Elementwise::add_scaled) return Vec::fma(Vec::load(other, n), Vec::all(job.c), value);
    if constexpr (kind == Elementwise::scale) return value * Vec::all(to_float(converted<T>(job.c)));
}

template <Elementwise kind, class T>
void elementwise(const ElementwiseRows& job, int64_t first_row, int64_t last_row) {
    for (int64_t row = first_row; row < last_row; ++row) {
        const T* x = static_cast<const T*>(job.x) + row * job.x_stride;
        const T* other = static_cast<const T*>(job.other) + row * job.other_stride;
        T* y = static_cast<T*>(job.y) + row * job.y_stride;
        by_vector(job.size, [&](int64_t i, int n) {
            const T* beside = kind == Elementwise::row_sigmoid_mul ? other : other + i;
            element<kind, T>(job, x + i, beside, n).store(y + i, n);
        });
    }
}

template <class T>
void position_scale(const PositionScale& job, int64_t first_row, int64_t last_row) {
    for (int64_t row = first_row; row < last_row; ++row) {
        const float far = floorf((float(job.positions[row]) + 1.0f) / job.floor_scale);
        const Vec factor = Vec::all(log1pf(far) * job.attn_scale + 1.0f);
        const T* x = static_cast<const T*>(job.x) + row * job.x_stride;
        T* y = static_cast<T*>(job.y) + row * job.size;
        for (int64_t i = 0; i < job.size; i += Vec::lanes) {
            const int n = int(job.size - i < Vec::lanes ? job.size - i : Vec::lanes);
            (Vec::load(x + i, n) * factor).store(y + i, n);
        }
    }
}

template <class T>
void rope(const Rope& job, int64_t first_row, int64_t last_row) {
    for (int64_t row = first_row; row < last_row; ++row) {
        const float* cosines = job.angles + row * 2 * job.half;
        const float* sines = cosines + job.half;
        for (int64_t head = 0; head < job.heads; ++head) {
            const T* x = static_cast<const T*>(job.x) + row * job.x_stride + head * job.head_dim;
            T* y = static_cast<T*>(job.y) + (row * job.heads + head) * job.head_dim;
            by_vector(job.half, [&](int64_t i, int n) {
                const Vec a = Vec::load(x + i, n), b = Vec::load(x + job.half + i, n);
                const Vec cosine = Vec::load(cosines + i, n), sine = Vec::load(sines + i, n);
                Vec::fma(a, cosine, Vec::zero() - b * sine).store(y + i, n);
                Vec::fma(b, cosine, a * sine).store(y + job.half + i, n);
            });
            for (int64_t i = 2 * job.half; i < job.head_dim; ++i) y[i] = x[i];
        }
    }
}

}  // namespace
}  // namespace headrace
