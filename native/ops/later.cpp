#include "ops/later.h"

#include <algorithm>

#include "core/pool.h"

namespace headrace {
namespace {

constexpr int64_t most_bytes = 16 << 20;

}  // namespace

LaterReads& LaterReads::mine() {
    thread_local LaterReads reads;
    return reads;
}

void LaterReads::want(const void* base, const std::vector<int32_t>& blocks, int64_t stride, int64_t bytes) {
    const int64_t count = std::min(int64_t(blocks.size()), most_bytes / bytes);
    blocks_.assign(blocks.begin(), blocks.begin() + count);
    const int64_t n = Pool::instance().threads();
    threads_.resize(size_t(n));
    for (int64_t thread = 0; thread < n; ++thread) {
        const int64_t first = count * thread / n, last = count * (thread + 1) / n;
        threads_[size_t(thread)].later = {static_cast<const char*>(base), blocks_.data() + first, last - first, stride, bytes, 0, 0};
    }
}

}  // namespace headrace
