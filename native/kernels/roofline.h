// What a level can do at most on this machine: the measures that benchmarks hold kernels against.
#pragma once

#include "simd/dot.h"

namespace headrace {
namespace {

// Reads bytes, a multiple of 512, in order; returns something that depends on all of them.
float read_all(const void* memory, int64_t bytes) {
    const float* p = static_cast<const float*>(memory);
    constexpr int64_t step = 512 / 4;
    constexpr int ways = 8;
    Vec sums[ways];
    for (Vec& sum : sums) sum = Vec::zero();
    for (int64_t at = 0; at < bytes / 4; at += step) {
        for (int64_t line = 0; line < step; line += 16) __builtin_prefetch(p + at + 256 + line);
        for (int64_t i = 0; i < step; i += Vec::lanes)
            sums[i / Vec::lanes % ways] = Vec::max(sums[i / Vec::lanes % ways], Vec::load(p + at + i));
    }
    for (int i = 1; i < ways; ++i) sums[0] = Vec::max(sums[0], sums[i]);
    return sums[0].sum();
}

// Multiplies and adds in registers alone; returns how many products there were, as far as `guard` allows.
template <class T>
int64_t multiply_all(int64_t turns, float guard) {
    constexpr int ways = 12;
    Vec sums[ways];
    for (int i = 0; i < ways; ++i) sums[i] = Vec::all(guard * float(i));
    const Vec a = Vec::all(guard), b = Vec::all(guard);
    for (int64_t turn = 0; turn < turns; ++turn) {
#pragma GCC unroll 12
        for (int i = 0; i < ways; ++i) sums[i] = Dot<T>::multiply_add(a, b, sums[i]);
    }
    float total = 0.0f;
    for (int i = 0; i < ways; ++i) total += sums[i].sum();
    return total == guard + 1.0f ? 0 : turns * ways * Vec::lanes * Dot<T>::products;
}

}  // namespace
}  // namespace headrace
