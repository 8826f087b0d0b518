// Routers and experts within memory of exactly the promised sizes, on several threads.
#include <algorithm>
#include <limits>
#include <stdexcept>

#include "core/pool.h"
#include "ops/block_linear.h"
#include "ops/linear.h"
#include "ops/moe.h"
#include "tests/values.h"

using namespace headrace;

namespace {

struct Sizes {
    int64_t rows, n_experts, k, size, inner;
    bool gated, scaled_input, bias;
};

struct Routed {
    std::vector<int32_t> ids;
    std::vector<float> weights;
};

Routed routed(const Sizes& s, unsigned seed) {
    const auto logits = noise<float>(s.rows * s.n_experts, seed);
    Routed to{std::vector<int32_t>(size_t(s.rows * s.k)), std::vector<float>(size_t(s.rows * s.k))};
    run(Route{logits.data(), to.ids.data(), to.weights.data(), s.n_experts, s.n_experts, s.k, true}, s.rows);
    for (int64_t row = 0; row < s.rows; ++row) {
        float sum = 0;
        for (int64_t slot = row * s.k; slot < (row + 1) * s.k; ++slot) {
            sum += to.weights[size_t(slot)];
            for (int64_t other = row * s.k; other < slot; ++other) CHECK(to.ids[size_t(slot)] != to.ids[size_t(other)]);
        }
        CHECK(std::abs(sum - 1.0f) < 1e-5f);
    }
    return to;
}

template <class T>
std::vector<char> packed(const std::vector<T>& rows, int64_t n_experts, int64_t n, int64_t k) {
    const int64_t bytes = packed_bytes(n, k, dtype_of<T>);
    std::vector<char> weight(size_t(n_experts * bytes));
    for (int64_t e = 0; e < n_experts; ++e)
        run(PackRows{rows.data() + e * n * k, weight.data() + e * bytes, k, k, 0}, dtype_of<T>, n);
    return weight;
}

std::vector<char> packed_blocks(const BlockFormat& format, int64_t n_experts, int64_t n, int64_t k, unsigned seed) {
    const int64_t bytes = panels_of(n) * panel_bytes(k, format), groups = (k + format.group - 1) / format.group;
    std::mt19937 random(seed);
    std::vector<uint8_t> numbers(size_t(n * k));
    const std::vector<uint16_t> scales(size_t(n * groups), 0x2000);  // 2^-7 in half precision
    std::vector<char> weight(size_t(n_experts * bytes));
    for (int64_t e = 0; e < n_experts; ++e) {
        for (uint8_t& number : numbers) number = uint8_t(random() % (1u << format.bits));
        run(PackBlocks{numbers.data(), scales.data(), nullptr, weight.data() + e * bytes, k, 0, format}, n);
    }
    return weight;
}

// Each row alone is what it is among all, to the bit.
template <class T>
void check_alone(const Experts& job, const Sizes& s) {
    const T *x = static_cast<const T*>(job.x), *y = static_cast<const T*>(job.y);
    std::vector<T> alone(static_cast<size_t>(s.size));
    for (int64_t row = 0; row < s.rows; ++row) {
        Experts one = job;
        one.x = x + row * s.size;
        one.ids += row * s.k;
        one.weights += row * s.k;
        one.y = alone.data();
        run(one, dtype_of<T>, 1);
        CHECK(std::memcmp(alone.data(), y + row * s.size, sizeof(T) * size_t(s.size)) == 0);
    }
}

template <class T>
void check_blocks(const Sizes& s) {
    const BlockFormat eight{8, 128, 32, false, false}, four{4, 8, 32, false, false};
    const Routed to = routed(s, 1);
    const auto x = noise<T>(s.rows * s.size, 2);
    const auto up = packed_blocks(eight, s.n_experts, 2 * s.inner, s.size, 3);
    const auto down = packed_blocks(four, s.n_experts, s.size, s.inner, 4);
    std::vector<T> y(size_t(s.rows * s.size));
    const Experts job{x.data(), to.ids.data(), to.weights.data(), {up.data(), nullptr, true, eight, 1},
                      {down.data(), nullptr, true, four, 1}, y.data(), s.size, s.n_experts, s.k, s.size, 2 * s.inner, s.inner,
                      Elementwise::silu_mul, 0.0f, s.scaled_input};
    run(job, dtype_of<T>, s.rows);
    check_alone<T>(job, s);
}

// Values are checked from Python.
template <class T>
void check_experts(const Sizes& s) {
    const int64_t first = s.gated ? 2 * s.inner : s.inner;
    const Routed to = routed(s, 1);
    const auto x = noise<T>(s.rows * s.size, 2), up = noise<T>(s.n_experts * first * s.size, 3);
    const auto down = noise<T>(s.n_experts * s.size * s.inner, 4);
    const auto up_bias = noise<T>(s.n_experts * first, 5), down_bias = noise<T>(s.n_experts * s.size, 6);
    const auto packed_up = packed(up, s.n_experts, first, s.size), packed_down = packed(down, s.n_experts, s.size, s.inner);
    std::vector<T> y(size_t(s.rows * s.size));
    const ExpertWeights gate_up{packed_up.data(), s.bias ? up_bias.data() : nullptr, false, {}, 1};
    const ExpertWeights second{packed_down.data(), s.bias ? down_bias.data() : nullptr, false, {}, 1};
    const Experts job{x.data(), to.ids.data(), to.weights.data(), gate_up, second, y.data(), s.size, s.n_experts, s.k, s.size,
                first, s.inner, s.gated ? Elementwise::clamped_glu : Elementwise::relu_squared, 0.5f, s.scaled_input};
    run(job, dtype_of<T>, s.rows);
    check_alone<T>(job, s);
}

void check_groups() {
    // Of 4 groups the second and the last hold the best two; in them 4, 5 and 12 come first of equals. Expert 0, the best, is out.
    const std::vector<float> logits = {3, -3, -3, -3, 2, 2, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2}, correction(16, 0.0f);
    std::vector<int32_t> ids(3);
    std::vector<float> weights(3);
    const Route route{logits.data(), ids.data(), weights.data(), 16, 16, 3, false};
    run(SigmoidRoute{route, correction.data(), 4, 2, 2.0f}, 1);
    CHECK((ids == std::vector<int32_t>{4, 5, 12}));
    CHECK(std::abs(weights[0] - 2.0f / (1.0f + std::exp(-2.0f))) < 1e-6f);
}

void check_refusals() {
    const Sizes s{2, 3, 2, 4, 2, true, false, false};
    Routed to = routed(s, 1);
    to.ids[3] = 3;
    const auto x = noise<float>(8, 1);
    const auto up = packed(noise<float>(3 * 4 * 4, 2), 3, 4, 4), down = packed(noise<float>(3 * 4 * 2, 3), 3, 4, 2);
    std::vector<float> y(8);
    bool refused = false;
    try {
        run(Experts{x.data(), to.ids.data(), to.weights.data(), {up.data(), nullptr, false, {}, 1},
                    {down.data(), nullptr, false, {}, 1}, y.data(), 4, 3, 2, 4, 4, 2, Elementwise::silu_mul, 0.0f, false},
            Dtype::f32, 2);
    } catch (const std::out_of_range&) {
        refused = true;
    }
    CHECK(refused);
}

template <class T>
void check_all() {
    for (int64_t rows : {1, 3, 50})
        for (int64_t n_experts : {1, 7})
            for (bool flag : {false, true})
                check_experts<T>({rows, n_experts, std::min<int64_t>(n_experts, 3), 33, 5, flag, !flag, flag});
    check_experts<T>({40, 4, 2, 64, 40, true, true, true});
    check_blocks<T>({30, 5, 3, 70, 41, true, false, false});
}

}  // namespace

int main() {
    for (int threads : {1, 3}) {
        Pool::instance().set_threads(threads);
        check_all<float>();
        check_all<bf16>();
        check_groups();
        check_refusals();
    }
    return 0;
}
