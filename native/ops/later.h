// What the next layer's attention will read, asked for while the products before it compute. No result depends on it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "kernels/linear_args.h"

namespace headrace {

// Of the jobs of one calling thread: the pool's threads use it while that one waits.
class LaterReads {
  public:
    // The calling thread's.
    static LaterReads& mine();

    // From now on `bytes` are wanted from `base` on in each of the blocks, `stride` bytes apart; shared out among the pool's
    // threads. More than a last cache can be hoped to keep is not asked for.
    void want(const void* base, const std::vector<int32_t>& blocks, int64_t stride, int64_t bytes);

    // Of thread `thread` of the pool; null if nothing has been wanted of it.
    Later* of(int thread) { return thread < int(threads_.size()) ? &threads_[std::size_t(thread)].later : nullptr; }

  private:
    struct alignas(64) Place {
        Later later;
    };
    std::vector<int32_t> blocks_;
    std::vector<Place> threads_;
};

}  // namespace headrace
