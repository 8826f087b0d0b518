// What a later job will read, asked for by products: all of it once, no bit of a product changed, and nothing looked at that
// has gone meanwhile.
#include <memory>
#include <vector>

#include "core/pool.h"
#include "ops/attention.h"
#include "ops/block_linear.h"
#include "ops/later.h"
#include "ops/linear.h"
#include "tests/values.h"

using namespace headrace;

namespace {

constexpr int64_t m = 40, n = 1024, k = 128, heads = 2, dim = 24, layers = 3;
constexpr int64_t layer_values = block_tokens * heads * 2 * dim, block_stride = layers * layer_values;

void check_take(int64_t most) {
    const std::vector<int32_t> blocks{3, 0, 7};
    const std::vector<char> memory(1000);
    Later later{memory.data() + 10, blocks.data(), 3, 100, 70, 0, 0};
    std::vector<int> times(1000);
    int64_t size = 0;
    for (;;) {
        const char* from = later.take(most, size);
        if (size == 0) break;
        CHECK(size <= most);
        for (int64_t i = 0; i < size; ++i) ++times[size_t(from + i - memory.data())];
    }
    for (int64_t at = 0; at < 1000; ++at) {
        const int64_t block = (at - 10) / 100, offset = (at - 10) % 100;
        const bool wanted = at >= 10 && offset < 70 && (block == 0 || block == 3 || block == 7);
        CHECK(times[size_t(at)] == (wanted ? 1 : 0));
    }
}

// A step whose plan, cache and block table are gone when this returns.
void attend_and_forget() {
    auto plan = std::make_unique<AttentionPlan>();
    const std::vector<int64_t> starts{0, 1, 2}, lengths{70, 33};
    const std::vector<int32_t> table{1, 2, 3, 4, 5, 0};
    plan->fill({starts.data(), lengths.data(), 2, table.data(), 3, nullptr, 0, 0, 0, heads, nullptr});
    CHECK(plan->read() == (std::vector<int32_t>{1, 2, 3, 4, 5}));
    const auto q = noise<bf16>(2 * heads * dim, 1), cache = noise<bf16>(6 * block_stride, 2);
    std::vector<bf16> y(2 * heads * dim);
    run(Attend{q.data(), cache.data(), y.data(), nullptr, heads * dim, block_stride, heads, heads, dim, dim, 0.2f, 0.0f}, plan.get(),
        Dtype::bf16, Dtype::bf16, 2);
}

// Outputs of a product of each kind, over enough panels that each thread has a next one.
std::vector<float> products() {
    const auto x = noise<bf16>(m * k, 3), rows = noise<bf16>(n * k, 4);
    std::vector<char> weight(size_t(packed_bytes(n, k, Dtype::bf16)));
    run(PackRows{rows.data(), weight.data(), k, k, 0}, Dtype::bf16, n);
    std::vector<float> y(size_t(3 * m * n));
    run(Linear{x.data(), weight.data(), nullptr, y.data(), k, n, k, n, 1, true}, Dtype::bf16, m);
    run(Linear{x.data(), weight.data(), nullptr, y.data() + m * n, k, n, k, n, 4, true}, Dtype::bf16, m);
    const BlockFormat format{8, 128, 32, false, true};
    std::vector<char> in_blocks(size_t(panels_of(n) * panel_bytes(k, format)));
    const std::vector<uint8_t> numbers(size_t(n * k), 77);
    const std::vector<float> scales = noise<float>(n * k / 32, 5);
    run(PackBlocks{numbers.data(), scales.data(), nullptr, in_blocks.data(), k, 0, format}, n);
    run(BlockLinear{x.data(), in_blocks.data(), nullptr, y.data() + 2 * m * n, k, n, k, n, 1, true, format}, Dtype::bf16, m);
    return y;
}

void check_products() {
    const auto plain = products();
    for (int turn = 0; turn < 3; ++turn) {
        attend_and_forget();
        const auto again = products();
        check_same(plain.data(), again.data(), int64_t(plain.size()));
    }
}

}  // namespace

int main() {
    for (int64_t most : {1, 3, 35, 69, 70, 1000}) check_take(most);
    // More threads than what is wanted has been shared out among, and fewer.
    for (int threads : {1, 3, 2, 4}) {
        Pool::instance().set_threads(threads);
        check_products();
    }
    Pool::instance().set_threads(1);
    attend_and_forget();
    const Later& later = *LaterReads::mine().of(0);
    CHECK(later.count == 5 && later.block == 0 && later.offset == 0);
    products();
    CHECK(later.block == later.count);
    return 0;
}
