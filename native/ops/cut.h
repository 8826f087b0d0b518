// How a product is cut for the threads.
#pragma once

#include <cstdint>

namespace headrace {

// Panels of a chunk, `most` or less: where chunks are few, each thread gets as many of them as any other.
inline int64_t chunk_width(int64_t panels, int64_t most, int64_t threads) {
    constexpr int64_t few = 16;  // chunks of a thread
    for (int64_t width = most; width > 1; --width) {
        const int64_t chunks = (panels + width - 1) / width;
        if (chunks % threads == 0 || chunks > few * threads) return width;
    }
    return 1;
}

}  // namespace headrace
