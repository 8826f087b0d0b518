// Four by four values of 32 bits, turned: how rows become panels. Static: each ISA level has its own.
#pragma once

#include <cstdint>
#include <cstring>

namespace headrace {

// Row r, at from + r * from_stride, becomes value r of each of four groups, group c at to + c * to_stride.
static inline void transpose_4x4(const char* from, int64_t from_stride, char* to, int64_t to_stride) {
    typedef uint32_t Four __attribute__((vector_size(16)));
    Four rows[4];
    for (int r = 0; r < 4; ++r) std::memcpy(&rows[r], from + r * from_stride, 16);
    const Four lower01 = __builtin_shufflevector(rows[0], rows[1], 0, 4, 1, 5);
    const Four upper01 = __builtin_shufflevector(rows[0], rows[1], 2, 6, 3, 7);
    const Four lower23 = __builtin_shufflevector(rows[2], rows[3], 0, 4, 1, 5);
    const Four upper23 = __builtin_shufflevector(rows[2], rows[3], 2, 6, 3, 7);
    const Four columns[4] = {__builtin_shufflevector(lower01, lower23, 0, 1, 4, 5),
                             __builtin_shufflevector(lower01, lower23, 2, 3, 6, 7),
                             __builtin_shufflevector(upper01, upper23, 0, 1, 4, 5),
                             __builtin_shufflevector(upper01, upper23, 2, 3, 6, 7)};
    for (int c = 0; c < 4; ++c) std::memcpy(to + c * to_stride, &columns[c], 16);
}

}  // namespace headrace
