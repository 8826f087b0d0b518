// Rows as vectors: whole ones, and a part of one at the end. Included after the simd header of a level.
#pragma once

#include <cstdint>

namespace headrace {
namespace {

// f(i, n) for every n values from i on. Where n is all lanes the compiler knows it, and takes no masks.
template <class F>
inline __attribute__((always_inline)) void by_vector(int64_t size, const F& f) {
    int64_t i = 0;
    for (; i + Vec::lanes <= size; i += Vec::lanes) f(i, Vec::lanes);
    if (i < size) f(i, int(size - i));
}

// x rounded to T and back, lane by lane.
template <class T>
inline Vec rounded(Vec x) {
    if constexpr (sizeof(T) == sizeof(float))
        return x;
    else
        return x.rounded_to_bf16();
}

}  // namespace
}  // namespace headrace
