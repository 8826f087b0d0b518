// Products with weights in blocks, look-ups and packing within memory of exactly the promised sizes, on several threads.
#include <stdexcept>

#include "core/half.h"
#include "core/pool.h"
#include "ops/block_linear.h"
#include "tests/values.h"

using namespace headrace;

namespace {

const BlockFormat formats[] = {
    {4, 8, 32, false, false}, {4, 0, 32, true, true},  {4, 0, 16, true, true},   {8, 128, 32, false, false},
    {8, 0, 32, true, false},  {8, 32, 16, false, true}, {4, 0, 32, false, true, Codes::e2m1},
    {4, 0, 16, false, true, Codes::e2m1},               {8, 0, 32, false, false, Codes::e4m3},
    {8, 0, 32, false, true, Codes::e4m3},
};

// A weight's memory, and the values that look-ups give of it.
struct Weight {
    std::vector<char> memory;
    std::vector<float> values;
};

std::vector<char> scales_of(const BlockFormat& format, int64_t n, std::mt19937& random) {
    const uint16_t halves[] = {0x2000, 0x2400, 0xa000, 0};  // 2^-7, 2^-6, -2^-7, 0
    std::vector<char> scales(size_t(n * (format.has_wide_scales ? 4 : 2)));
    for (int64_t i = 0; i < n; ++i) {
        const uint16_t narrow = halves[random() % 4];
        const float wide = to_float(half{narrow}) * 1.25f;
        if (format.has_wide_scales)
            std::memcpy(&scales[size_t(i * 4)], &wide, 4);
        else
            std::memcpy(&scales[size_t(i * 2)], &narrow, 2);
    }
    return scales;
}

Weight make_weight(const BlockFormat& format, int64_t n, int64_t k) {
    const int64_t groups = (k + format.group - 1) / format.group;
    std::mt19937 random(unsigned(n * 131 + k));
    std::vector<uint8_t> numbers(size_t(n * k));
    for (uint8_t& number : numbers) {
        number = uint8_t(random() % (1u << format.bits));
        if (format.codes == Codes::e4m3 && (number & 127) == 127) number = 126;  // no NaN
    }
    const std::vector<char> scales = scales_of(format, n * groups, random), minima = scales_of(format, n * groups, random);
    Weight weight{std::vector<char>(size_t(panels_of(n) * panel_bytes(k, format))), std::vector<float>(size_t(n * k))};
    // In two parts that meet within a panel.
    const int64_t first = n / 2, row_scales = groups * (format.has_wide_scales ? 4 : 2);
    const auto pack = [&](int64_t from, int64_t rows) {
        run(PackBlocks{numbers.data() + from * k, scales.data() + from * row_scales,
                       format.has_minimum ? minima.data() + from * row_scales : nullptr, weight.memory.data(), k, from, format},
            rows);
    };
    pack(first, n - first);
    pack(0, first);
    std::vector<int64_t> ids;
    for (int64_t i = 0; i < n; ++i) ids.push_back(i);
    run(BlockEmbedding{ids.data(), weight.memory.data(), weight.values.data(), k, n, k, format}, Dtype::f32, n);
    ids[0] = n;
    bool refused = false;
    try {
        run(BlockEmbedding{ids.data(), weight.memory.data(), weight.values.data(), k, n, k, format}, Dtype::f32, n);
    } catch (const std::out_of_range&) {
        refused = true;
    }
    CHECK(refused);
    return weight;
}

// What an output may differ by from that of unrounded activations: half a step of each, and roundings of fp32.
template <class T>
void check_product(const BlockFormat& format, int64_t m, int64_t n, int64_t k, int64_t segments) {
    const auto x = noise<T>(m * k, 1), bias = noise<T>(n, 3);
    const Weight weight = make_weight(format, n, k);
    std::vector<float> wide(size_t(m * n)), alone(static_cast<size_t>(n));
    BlockLinear job{x.data(), weight.memory.data(), bias.data(), wide.data(), k, n, k, n, segments, true, format};
    run(job, dtype_of<T>, m);
    for (int64_t i = 0; i < m; ++i) {
        for (int64_t j = 0; j < n; ++j) {
            double sum = to_float(bias[size_t(j)]), size = std::abs(sum) + 1.0, steps = 0.0;
            for (int64_t l = 0; l < k; ++l) {
                const double w = weight.values[size_t(j * k + l)], term = to_float(x[size_t(i * k + l)]) * w;
                sum += term;
                // Numbers and minima may cancel.
                size += std::abs(term) + 4.0;
                steps += std::abs(w);
            }
            const double rounding = format.codes == Codes::e4m3 ? 0.0 : steps / 254.0 * 1.001;
            CHECK(std::abs(wide[size_t(i * n + j)] - sum) <= rounding + 4e-6 * size);
        }
        BlockLinear one = job;
        one.x = x.data() + i * k;
        one.y = alone.data();
        run(one, dtype_of<T>, 1);
        check_same(alone.data(), wide.data() + i * n, n);
    }
}

template <class T>
void check_all() {
    for (const BlockFormat& format : formats) {
        for (int64_t m : {1, 5, 27})
            for (int64_t n : {1, 33, 70})
                for (int64_t k : {1, 31, 65}) check_product<T>(format, m, n, k, 1);
        check_product<T>(format, 13, 45, 256, 4);
    }
}

void check_refused(const BlockFormat& format) {
    bool refused = false;
    try {
        check(format);
    } catch (const std::invalid_argument&) {
        refused = true;
    }
    CHECK(refused);
}

}  // namespace

int main() {
    for (int threads : {1, 3}) {
        Pool::instance().set_threads(threads);
        check_all<float>();
        check_all<bf16>();
    }
    check_refused({5, 0, 32, false, false});
    check_refused({8, 0, 16, false, true, Codes::e4m3});
    check_refused({4, 0, 32, false, false, Codes::e2m1});
    check_refused({4, 8, 32, false, true, Codes::e2m1});
    return 0;
}
