// Low-rank additions: what adapters add, to whose rows and columns, within memory of exactly the promised sizes.
#include <stdexcept>

#include "core/pool.h"
#include "ops/linear.h"
#include "ops/low_rank.h"
#include "tests/values.h"

using namespace headrace;

namespace {

// One adapter: its numbers as they are, and packed.
template <class T>
struct Adapter {
    std::vector<T> a;
    std::vector<std::vector<T>> b;
    std::vector<char> packed_a;
    std::vector<std::vector<char>> packed_b;
    LowRankAdapter job;
};

template <class T>
std::vector<char> packed(const std::vector<T>& rows, int64_t n, int64_t k) {
    std::vector<char> weight(size_t(packed_bytes(n, k, dtype_of<T>)));
    run(PackRows{rows.data(), weight.data(), k, k, 0}, dtype_of<T>, n);
    return weight;
}

// Parts of `widths` outputs each, side by side from column `gap` on with `gap` columns between them.
template <class T>
Adapter<T> adapter(int64_t rank, int64_t k, const std::vector<int64_t>& widths, int64_t gap, unsigned seed) {
    Adapter<T> made;
    const int64_t all = rank * int64_t(widths.size());
    made.a = noise<T>(all * k, seed);
    made.packed_a = packed(made.a, all, k);
    made.packed_b.reserve(widths.size());
    made.job.a = made.packed_a.data();
    made.job.rank = all;
    int64_t column = gap;
    for (size_t i = 0; i < widths.size(); ++i) {
        made.b.push_back(noise<T>(widths[i] * rank, seed + 100 + unsigned(i)));
        made.packed_b.push_back(packed(made.b.back(), widths[i], rank));
        made.job.parts.push_back(
            {made.packed_b.back().data(), int64_t(i) * rank, rank, column, widths[i], 0.5f + float(seed)});
        column += widths[i] + gap;
    }
    return made;
}

// What a row should be: the columns of no part are left as they are.
template <class T>
void check_row(const T* got, const T* before, int64_t n, const T* x, int64_t k, const Adapter<T>* with) {
    std::vector<double> exact, size;
    for (int64_t j = 0; j < n; ++j) exact.push_back(to_float(before[j])), size.push_back(0);
    std::vector<bool> touched(static_cast<size_t>(n));
    for (size_t i = 0; with != nullptr && i < with->b.size(); ++i) {
        const LowRankPart& part = with->job.parts[i];
        for (int64_t j = 0; j < part.n; ++j) {
            const size_t column = size_t(part.first_y + j);
            touched[column] = true;
            for (int64_t r = 0; r < part.rank; ++r) {
                double u = 0, u_size = 0;
                for (int64_t l = 0; l < k; ++l) {
                    const double term = double(to_float(with->a[size_t((part.first_u + r) * k + l)])) * to_float(x[l]);
                    u += term, u_size += std::abs(term);
                }
                const double b = double(part.scale) * to_float(with->b[i][size_t(j * part.rank + r)]);
                exact[column] += b * u, size[column] += std::abs(b) * u_size;
            }
        }
    }
    // u is kept in T on the way.
    const double rounding = sizeof(T) == 4 ? 4e-6 : std::ldexp(1.02, -8);
    for (int64_t j = 0; j < n; ++j) {
        if (!touched[size_t(j)])
            CHECK(std::memcmp(got + j, before + j, sizeof(T)) == 0);
        else
            CHECK(std::abs(to_float(got[j]) - exact[size_t(j)]) <= rounding * (size[size_t(j)] + std::abs(exact[size_t(j)])));
    }
}

template <class T>
void check_rows(int64_t m, int64_t k, int64_t rank, const std::vector<int64_t>& widths) {
    const int64_t gap = 3, x_stride = k + 1;
    int64_t n = gap;
    for (int64_t width : widths) n += width + gap;
    const Adapter<T> first = adapter<T>(rank, k, widths, gap, 1), third = adapter<T>(rank + 2, k, widths, gap, 2);
    const LowRankTable table{first.job, LowRankAdapter{}, third.job};
    const Adapter<T>* of[] = {&first, nullptr, &third};
    // The last row has no gap behind it.
    const auto x = noise<T>(m * x_stride - 1, 7), before = noise<T>(m * n, 8);
    std::vector<int32_t> adapters;
    for (int64_t i = 0; i < m; ++i) adapters.push_back(int32_t(i * 7 % 4) - 1);
    auto y = before;
    run(LowRank{x.data(), adapters.data(), &table, y.data(), k, x_stride, n}, dtype_of<T>, m);
    for (int64_t i = 0; i < m; ++i) {
        const T *row = x.data() + i * x_stride, *old = before.data() + i * n;
        const int32_t number = adapters[size_t(i)];
        check_row(y.data() + i * n, old, n, row, k, number < 0 ? nullptr : of[number]);
        // In no other company a bit of it changes.
        std::vector<T> alone(old, old + n);
        run(LowRank{row, &number, &table, alone.data(), k, x_stride, n}, dtype_of<T>, 1);
        check_same(alone.data(), y.data() + i * n, n);
    }
}

// A row that no adapter of the table is for: nothing is written.
template <class T>
void check_refusal() {
    const Adapter<T> only = adapter<T>(2, 5, {4}, 0, 1);
    const LowRankTable table{only.job};
    const auto x = noise<T>(10, 1), before = noise<T>(8, 2);
    const int32_t adapters[] = {0, 1};
    auto y = before;
    bool refused = false;
    try {
        run(LowRank{x.data(), adapters, &table, y.data(), 5, 5, 4}, dtype_of<T>, 2);
    } catch (const std::out_of_range&) {
        refused = true;
    }
    CHECK(refused);
    check_same(y.data(), before.data(), 8);
}

template <class T>
void check_all() {
    for (int64_t m : {1, 2, 7, 40})
        for (int64_t k : {1, 7, 65})
            for (int64_t rank : {1, 4, 9}) {
                check_rows<T>(m, k, rank, {33});
                check_rows<T>(m, k, rank, {1, 70, 31});
            }
    check_refusal<T>();
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
