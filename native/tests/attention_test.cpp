// Paged attention within memory of exactly the promised sizes, on several threads: against sums in double, and each row's
// bits alone as in company.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <random>
#include <stdexcept>
#include <vector>

#include "core/bf16.h"
#include "core/kv_numbers.h"
#include "core/pool.h"
#include "ops/attention.h"
#include "tests/check.h"

using namespace headrace;

namespace {

template <class T>
T from_float(float x) {
    if constexpr (sizeof(T) == 4)
        return x;
    else
        return to_bf16(x);
}

template <class T>
constexpr Dtype dtype_of = Dtype::f32;
template <>
constexpr Dtype dtype_of<bf16> = Dtype::bf16;
template <>
constexpr Dtype dtype_of<q8> = Dtype::q8;
template <>
constexpr Dtype dtype_of<e4m3> = Dtype::e4m3;

template <class T>
constexpr bool scaled = sizeof(T) == 1;

// Width values of a key or value as a cache of T gives them back.
template <class T, class Q>
std::vector<float> kept(const Q* x, int64_t width) {
    std::vector<float> values;
    float largest = 0.0f;
    for (int64_t i = 0; i < width; ++i) largest = std::max(largest, std::abs(to_float(x[i])));
    for (int64_t i = 0; i < width; ++i) {
        const float value = to_float(x[i]);
        if constexpr (!scaled<T>) {
            values.push_back(to_float(from_float<T>(value)));
        } else if constexpr (dtype_of<T> == Dtype::q8) {
            values.push_back(std::nearbyint(value / (largest / 127.0f)) * (largest / 127.0f));
        } else {
            const float scale = largest / 448.0f, size = std::abs(value / scale);
            const float step = std::ldexp(1.0f, std::max(std::ilogb(size), -6) - 3);
            const float number = size < 0x1p-6f ? (size < 0x1p-6f - 0x1p-10f ? 0.0f : 0x1p-6f) : std::nearbyint(size / step) * step;
            values.push_back(std::copysign(number, value) * scale);
        }
    }
    return values;
}

struct Sizes {
    int64_t n_seqs, n_kv_heads, group, key_dim, value_dim, window, chunk;
    bool given_ranges, sinks;
    float soft_cap;
};

// Some sequences, all of whose keys are in the cache; the rows are the last of each.
template <class Q, class T>
struct Case {
    Sizes s;
    std::mt19937 random;
    std::vector<int64_t> starts{0}, lengths, where;
    std::vector<int32_t> table;
    std::vector<KeyRange> seen;
    std::vector<Q> q, sinks;
    std::vector<float> k, v;  // [sequence][token][kv head][dim], as the cache holds them
    std::vector<int64_t> first_token{0};
    std::vector<T> cache;
    int64_t columns = 0;

    Case(const Sizes& sizes, unsigned seed) : s(sizes), random(seed) {
        for (int64_t i = 0; i < s.n_seqs; ++i) {
            const int64_t rows = random() % 4 == 0 ? 1 : int64_t(random() % 30);
            lengths.push_back(std::max<int64_t>(1, rows + int64_t(random() % 700)));
            starts.push_back(starts.back() + rows);
            first_token.push_back(first_token.back() + lengths.back());
            columns = std::max(columns, (lengths.back() + block_tokens - 1) / block_tokens);
        }
        lay_out_blocks();
        q = noise<Q>(starts.back() * s.n_kv_heads * s.group * s.key_dim);
        sinks = noise<Q>(s.n_kv_heads * s.group);
        set_ranges();
        write();
    }

    template <class V>
    std::vector<V> noise(int64_t n) {
        std::uniform_real_distribution<float> uniform(-1.0f, 1.0f);
        std::vector<V> values(static_cast<size_t>(n));
        for (V& value : values) value = from_float<V>(uniform(random));
        return values;
    }

    int64_t block_size() const {
        const int64_t scales = scaled<T> ? 8 : 0;
        return block_tokens * s.n_kv_heads * (stored<T>(s.key_dim) + s.value_dim + scales);
    }

    // Blocks in no order; a column that no row needs names none.
    void lay_out_blocks() {
        std::vector<int32_t> order(size_t(s.n_seqs * columns));
        for (size_t i = 0; i < order.size(); ++i) order[i] = int32_t(i);
        std::shuffle(order.begin(), order.end(), random);
        table.assign(order.begin(), order.end());
        for (int64_t seq = 0; seq < s.n_seqs; ++seq) {
            for (int64_t token = 0; token < lengths[size_t(seq)]; ++token)
                where.push_back(table[size_t(seq * columns + token / block_tokens)] * block_tokens + token % block_tokens);
            for (int64_t column = (lengths[size_t(seq)] + block_tokens - 1) / block_tokens; column < columns; ++column)
                table[size_t(seq * columns + column)] = std::numeric_limits<int32_t>::max();
        }
        cache.resize(size_t(s.n_seqs * columns * block_size()));
        std::memset(static_cast<void*>(cache.data()), 0xff, cache.size() * sizeof(T));  // not a number, in floats of every size
    }

    void set_ranges() {
        for (int64_t seq = 0; seq < s.n_seqs; ++seq) {
            const int64_t length = lengths[size_t(seq)], rows = starts[size_t(seq) + 1] - starts[size_t(seq)];
            for (int64_t position = length - rows; position < length; ++position) {
                int64_t first = s.window ? std::max<int64_t>(0, position + 1 - s.window) : 0;
                if (s.chunk) first = position - position % s.chunk;
                seen.push_back({first, position + 1});
                if (s.given_ranges) seen.back() = {int64_t(random() % unsigned(length)), int64_t(random() % unsigned(length + 1))};
            }
        }
    }

    AttentionPlan plan_of(int64_t seq, int64_t first, int64_t rows, const std::vector<int64_t>& index) {
        const int64_t query_starts[2] = {0, rows};
        const int64_t length = lengths[size_t(seq)] - (starts[size_t(seq) + 1] - starts[size_t(seq)]) + first + rows;
        AttentionPlan plan;
        plan.fill({query_starts, &length, 1, table.data() + seq * columns, columns, index.data(), int64_t(index.size()),
                   s.window, s.chunk, s.n_kv_heads, s.given_ranges ? seen.data() + starts[size_t(seq)] + first : nullptr});
        return plan;
    }

    void write() {
        const int64_t tokens = int64_t(where.size());
        const auto keys = noise<Q>(tokens * s.n_kv_heads * s.key_dim), values = noise<Q>(tokens * s.n_kv_heads * s.value_dim);
        for (int64_t i = 0; i < tokens * s.n_kv_heads; ++i) {
            for (float x : kept<T>(keys.data() + i * s.key_dim, s.key_dim)) k.push_back(x);
            for (float x : kept<T>(values.data() + i * s.value_dim, s.value_dim)) v.push_back(x);
        }
        AttentionPlan plan = plan_of(0, 0, 0, where);
        run(WriteKv{keys.data(), values.data(), cache.data(), s.n_kv_heads * s.key_dim, s.n_kv_heads * s.value_dim,
                    block_size(), s.n_kv_heads, s.key_dim, s.value_dim},
            &plan, dtype_of<Q>, dtype_of<T>, tokens);
    }

    std::vector<Q> attend(AttentionPlan& plan, int64_t first_row, int64_t rows) {
        const int64_t heads = s.n_kv_heads * s.group;
        std::vector<Q> y(size_t(rows * heads * s.value_dim));
        run(Attend{q.data() + first_row * heads * s.key_dim, cache.data(), y.data(), s.sinks ? sinks.data() : nullptr,
                   heads * s.key_dim, block_size(), heads, s.n_kv_heads, s.key_dim, s.value_dim, 0.5f, s.soft_cap},
            &plan, dtype_of<Q>, dtype_of<T>, rows);
        return y;
    }

    std::vector<Q> together() {
        AttentionPlan plan;
        plan.fill({starts.data(), lengths.data(), s.n_seqs, table.data(), columns, where.data(), int64_t(where.size()),
                   s.window, s.chunk, s.n_kv_heads, s.given_ranges ? seen.data() : nullptr});
        return attend(plan, 0, starts.back());
    }

    // One head of a row, in double.
    std::vector<double> expected(int64_t seq, int64_t row, int64_t head) const {
        const Q* x = q.data() + (row * s.n_kv_heads * s.group + head) * s.key_dim;
        std::vector<double> sums(size_t(s.value_dim), 0.0);
        double total = s.sinks ? std::exp(double(to_float(sinks[size_t(head)]))) : 0.0;
        for (int64_t token = seen[size_t(row)].first; token < seen[size_t(row)].end; ++token) {
            const int64_t at = (first_token[size_t(seq)] + token) * s.n_kv_heads + head / s.group;
            double score = 0.0;
            for (int64_t i = 0; i < s.key_dim; ++i) score += double(to_float(x[i])) * k[size_t(at * s.key_dim + i)];
            score *= 0.5;
            if (s.soft_cap != 0.0f) score = s.soft_cap * std::tanh(score / s.soft_cap);
            const double weight = std::exp(score);
            total += weight;
            for (int64_t i = 0; i < s.value_dim; ++i) sums[size_t(i)] += weight * v[size_t(at * s.value_dim + i)];
        }
        for (double& sum : sums) sum = total > 0.0 ? sum / total : 0.0;
        return sums;
    }

    void check() {
        const int64_t heads = s.n_kv_heads * s.group, size = heads * s.value_dim;
        const double tolerance = sizeof(Q) == 2 || sizeof(T) == 2 || dtype_of<T> == Dtype::e4m3 ? 2e-2 : scaled<T> ? 1e-3 : 1e-5;
        const auto y = together();
        for (int64_t seq = 0; seq < s.n_seqs; ++seq) {
            for (int64_t row = starts[size_t(seq)]; row < starts[size_t(seq) + 1]; ++row) {
                for (int64_t head = 0; head < heads; ++head) {
                    const auto wanted = expected(seq, row, head);
                    for (int64_t i = 0; i < s.value_dim; ++i)
                        CHECK(std::abs(to_float(y[size_t(row * size + head * s.value_dim + i)]) - wanted[size_t(i)]) < tolerance);
                }
                AttentionPlan plan = plan_of(seq, row - starts[size_t(seq)], 1, {});
                const auto alone = attend(plan, row, 1);
                CHECK(std::memcmp(alone.data(), y.data() + row * size, sizeof(Q) * size_t(size)) == 0);
            }
        }
    }
};

void refuses_keys_outside_the_table() {
    const int64_t starts[2] = {0, 1}, length = 5, index = 0;
    const int32_t table = 0;
    for (const KeyRange wrong : {KeyRange{0, 33}, KeyRange{-1, 2}}) {
        bool refused = false;
        try {
            AttentionPlan plan;
            plan.fill({starts, &length, 1, &table, 1, &index, 1, 0, 0, 1, &wrong});
        } catch (const std::invalid_argument&) {
            refused = true;
        }
        CHECK(refused);
    }
}

// Small sizes of every kind.
template <class Q, class T>
void fuzz(int turns, unsigned seed) {
    std::mt19937 random(seed);
    const auto one_of = [&](std::initializer_list<int64_t> values) { return values.begin()[random() % values.size()]; };
    for (int turn = 0; turn < turns; ++turn) {
        Sizes s{one_of({1, 2, 5}), one_of({1, 2, 3}), one_of({1, 2, 3, 7}), one_of({2, 4, 12, 20, 32, 40}),
                one_of({1, 4, 7, 12, 32, 40, 64}), one_of({0, 0, 1, 5, 33, 150}), one_of({0, 1, 7, 48, 64}),
                random() % 3 == 0, random() % 2 == 0, random() % 2 ? 0.0f : 2.0f};
        if (s.window) s.chunk = 0;
        Case<Q, T>(s, random()).check();
    }
}

}  // namespace

int main() {
    refuses_keys_outside_the_table();
    for (int threads : {1, 3}) {
        Pool::instance().set_threads(threads);
        fuzz<float, float>(12, unsigned(threads));
        fuzz<bf16, bf16>(12, unsigned(threads) + 10);
        fuzz<float, bf16>(4, unsigned(threads) + 20);
        fuzz<bf16, float>(4, unsigned(threads) + 30);
        fuzz<float, q8>(8, unsigned(threads) + 40);
        fuzz<bf16, q8>(4, unsigned(threads) + 50);
        fuzz<float, e4m3>(4, unsigned(threads) + 60);
        fuzz<bf16, e4m3>(8, unsigned(threads) + 70);
    }
    return 0;
}
