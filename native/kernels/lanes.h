// Vectors as the compiler's own types: integers and floats with plain operators, lane by lane. Included after the simd
// header of a level.
#pragma once

#include <cstdint>
#include <cstring>

namespace headrace {
namespace {

// As many numbers as `Vec` has.
struct Lanes {
    static constexpr int count = Vec::lanes;
    typedef float F __attribute__((vector_size(4 * Vec::lanes)));
    typedef int32_t I __attribute__((vector_size(4 * Vec::lanes)));
    typedef uint32_t U __attribute__((vector_size(4 * Vec::lanes)));
    typedef int8_t Bytes __attribute__((vector_size(Vec::lanes)));

    static I to_int(F x) { return __builtin_convertvector(x, I); }
    static F to_float(I x) { return __builtin_convertvector(x, F); }
    static F all(float x) { return x - F{}; }
    static F load(const float* p) {
        F x;
        std::memcpy(&x, p, sizeof x);
        return x;
    }
    static U load(const uint32_t* p) {
        U x;
        std::memcpy(&x, p, sizeof x);
        return x;
    }
    // 0, 1, 2 ...
    static U count_up() {
        U x{};
        for (int i = 0; i < count; ++i) x[i] = uint32_t(i);
        return x;
    }
    template <class V>
    static int64_t sum(V x) {
        int64_t total = 0;
        for (int i = 0; i < count; ++i) total += x[i];
        return total;
    }
};

}  // namespace
}  // namespace headrace
