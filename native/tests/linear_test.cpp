// Products, look-ups and packing within memory of exactly the promised sizes, on several threads.
#include <stdexcept>

#include "core/pool.h"
#include "ops/linear.h"
#include "tests/values.h"

using namespace headrace;

namespace {

template <class T>
std::vector<char> packed(const std::vector<T>& rows, int64_t n, int64_t k) {
    std::vector<char> weight(size_t(packed_bytes(n, k, dtype_of<T>)));
    // In two parts that meet within a panel.
    const int64_t first = n / 2;
    run(PackRows{rows.data() + first * k, weight.data(), k, k, first}, dtype_of<T>, n - first);
    run(PackRows{rows.data(), weight.data(), k, k, 0}, dtype_of<T>, first);
    return weight;
}

template <class T>
void check_product(int64_t m, int64_t n, int64_t k, int64_t segments) {
    const auto x = noise<T>(m * k, 1), rows = noise<T>(n * k, 2), bias = noise<T>(n, 3);
    const auto weight = packed(rows, n, k);
    std::vector<float> wide(size_t(m * n));
    std::vector<T> narrow(size_t(m * n));
    run(Linear{x.data(), weight.data(), bias.data(), wide.data(), k, n, k, n, segments, true}, dtype_of<T>, m);
    run(Linear{x.data(), weight.data(), bias.data(), narrow.data(), k, n, k, n, segments, false}, dtype_of<T>, m);
    for (int64_t i = 0; i < m; ++i) {
        for (int64_t j = 0; j < n; ++j) {
            double sum = to_float(bias[size_t(j)]), size = std::abs(sum);
            for (int64_t l = 0; l < k; ++l) {
                const double term = double(to_float(x[size_t(i * k + l)])) * to_float(rows[size_t(j * k + l)]);
                sum += term;
                size += std::abs(term);
            }
            const float got = wide[size_t(i * n + j)];
            CHECK(std::abs(got - sum) <= 2e-6 * size);
            const T once = converted<T>(got);
            CHECK(std::memcmp(&once, &narrow[size_t(i * n + j)], sizeof(T)) == 0);
        }
    }
}

template <class T>
void check_look_up(int64_t n, int64_t k) {
    const auto rows = noise<T>(n * k, 4);
    const auto weight = packed(rows, n, k);
    std::vector<int64_t> ids;
    for (int64_t i = 0; i < n; ++i) ids.push_back(n - 1 - i);
    std::vector<T> y(size_t(n * k));
    run(Embedding{ids.data(), weight.data(), y.data(), k, n, k}, dtype_of<T>, n);
    for (int64_t i = 0; i < n; ++i)
        CHECK(std::memcmp(&y[size_t(i * k)], &rows[size_t((n - 1 - i) * k)], sizeof(T) * size_t(k)) == 0);
    ids[0] = n;
    bool refused = false;
    try {
        run(Embedding{ids.data(), weight.data(), y.data(), k, n, k}, dtype_of<T>, n);
    } catch (const std::out_of_range&) {
        refused = true;
    }
    CHECK(refused);
}

template <class T>
void check_all() {
    for (int64_t m : {1, 2, 5, 13, 40})
        for (int64_t n : {1, 31, 33, 100})
            for (int64_t k : {1, 2, 7, 12, 65}) check_product<T>(m, n, k, 1);
    for (int64_t m : {1, 13})
        for (int64_t k : {8, 40, 72}) check_product<T>(m, 45, k, 4);
    for (int64_t n : {1, 32, 70})
        for (int64_t k : {1, 2, 33}) check_look_up<T>(n, k);
}

}  // namespace

int main() {
    for (int threads : {1, 3}) {
        Pool::instance().set_threads(threads);
        check_all<float>();
        check_all<bf16>();
    }
    return 0;
}
