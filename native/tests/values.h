// Random values in either dtype, and what a result may differ by.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <random>
#include <vector>

#include "core/bf16.h"
#include "core/dtype.h"
#include "tests/check.h"

namespace headrace {

template <class T>
constexpr Dtype dtype_of = sizeof(T) == 4 ? Dtype::f32 : Dtype::bf16;

template <class T>
std::vector<T> noise(int64_t n, unsigned seed, float range = 1.0f) {
    std::mt19937 random(seed);
    std::uniform_real_distribution<float> uniform(-range, range);
    std::vector<T> values(static_cast<size_t>(n));
    for (T& value : values) value = converted<T>(uniform(random));
    return values;
}

// got is exact, but for a few roundings of fp32 and one to T. `size` is that of the terms that exact is made of.
template <class T>
void check_near(T got, double exact, double size) {
    // Half the distance of neighbours in bf16, among the smallest of which it is 2^-134.
    const double one = sizeof(T) == 4 ? 0.0 : std::max(std::ldexp(std::abs(exact), -8), std::ldexp(1.0, -134)) * 1.01;
    const bool near = std::abs(to_float(got) - exact) <= 4e-6 * size + one;
    if (!near) std::fprintf(stderr, "%.9g is not near %.9g among terms of size %.3g\n", to_float(got), exact, size);
    CHECK(near);
}

template <class T>
void check_same(const T* a, const T* b, int64_t n) {
    CHECK(std::memcmp(a, b, sizeof(T) * size_t(n)) == 0);
}

}  // namespace headrace
