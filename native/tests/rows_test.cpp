// Activations, norms and the rotation, against double precision, within memory of exactly the promised sizes; and each
// row's bits alone as in company.
#include "core/pool.h"
#include "ops/elementwise.h"
#include "ops/norm.h"
#include "tests/values.h"

using namespace headrace;

namespace {

constexpr int64_t sizes[] = {1, 3, 4, 5, 8, 12, 16, 20, 33, 64, 100};
constexpr int64_t n_rows = 5;

double exact_of(Elementwise kind, double x, double other, double c) {
    switch (kind) {
        case Elementwise::silu_mul: return x / (1 + std::exp(-x)) * other;
        // 0.5 (1 + tanh u) without the difference of two neighbours.
        case Elementwise::gelu_tanh_mul: return x / (1 + std::exp(-2 * std::sqrt(2 / M_PI) * (x + 0.044715 * x * x * x))) * other;
        case Elementwise::relu_squared: return x > 0 ? x * x : 0;
        case Elementwise::soft_cap: return c * std::tanh(x / c);
        case Elementwise::add: return x + other;
        case Elementwise::add_scaled: return x + c * other;
        case Elementwise::scale: return x * c;
        case Elementwise::clamped_glu: {
            const double gate = std::min(x, c), up = std::max(-c, std::min(c, other));
            return (up + 1) * gate / (1 + std::exp(-1.702 * gate));
        }
        case Elementwise::gelu: return x * std::erfc(-x / std::sqrt(2.0)) / 2;
        case Elementwise::sigmoid_mul:
        case Elementwise::row_sigmoid_mul: return x / (1 + std::exp(-other));
        default: std::abort();
    }
}

template <class T>
void check_elementwise(Elementwise kind, int64_t size) {
    const bool pairs = kind == Elementwise::silu_mul || kind == Elementwise::gelu_tanh_mul || kind == Elementwise::clamped_glu;
    const int64_t width = pairs ? 2 * size : size;
    const auto x = noise<T>(n_rows * width, 1, 8.0f), other = noise<T>(n_rows * size, 2, 8.0f);
    const float c = to_float(converted<T>(2.5f));
    std::vector<T> y(size_t(n_rows * size)), alone(static_cast<size_t>(size));
    run(ElementwiseRows{x.data(), other.data(), y.data(), size, width, size, size, c}, kind, dtype_of<T>, n_rows);
    for (int64_t row = 0; row < n_rows; ++row) {
        const T* from = x.data() + row * width;
        for (int64_t i = 0; i < size; ++i) {
            const int64_t beside = row * size + (kind == Elementwise::row_sigmoid_mul ? 0 : i);
            const double a = to_float(from[i]), b = to_float(pairs ? from[size + i] : other[size_t(beside)]);
            const double exact = exact_of(kind, a, b, c);
            // What is a difference is as far off as its larger side.
            const double absolute = kind == Elementwise::soft_cap ? c : kind == Elementwise::gelu ? std::abs(a) : 0.0;
            // An exponential is as far off as its argument, which is up to 50 here.
            check_near(y[size_t(row * size + i)], exact, 5 * std::abs(exact) + absolute);
        }
        run(ElementwiseRows{from, other.data() + row * size, alone.data(), size, width, size, size, c}, kind, dtype_of<T>, 1);
        check_same(alone.data(), y.data() + row * size, size);
    }
}

template <class T>
void check_far_values() {
    const float far[] = {0.0f, -0.0f, 1e-38f, -1e-38f, 88.0f, -88.0f, 200.0f, -200.0f, 1e30f, -1e30f, INFINITY, -INFINITY, NAN};
    constexpr int64_t size = sizeof far / sizeof *far;
    std::vector<T> x, y(size);
    for (float value : far) x.push_back(converted<T>(value));
    for (int64_t i = 0; i < size; ++i) x.push_back(converted<T>(1.0f));
    run(ElementwiseRows{x.data(), nullptr, y.data(), size, 2 * size, 0, size, 0.0f}, Elementwise::silu_mul, dtype_of<T>, 1);
    for (int64_t i = 0; i < size; ++i) {
        const double value = to_float(x[size_t(i)]), got = to_float(y[size_t(i)]);
        // x / (1 + exp(-x)) has no limit at minus infinity in IEEE arithmetic.
        if (std::isnan(value) || value == -INFINITY)
            CHECK(std::isnan(got));
        else if (std::isinf(value))
            CHECK(got == value);
        else
            check_near(y[size_t(i)], value / (1 + std::exp(-value)), std::abs(value) > 87 && value < 0 ? 1e-30 : std::abs(value));
    }
}

template <class T>
void check_rms_norm(int64_t size, int64_t heads, int64_t weights, bool plus_one) {
    const auto x = noise<T>(n_rows * heads * size, 1), weight = noise<T>(weights * size, 2);
    std::vector<T> y(x.size()), alone(size_t(heads * size));
    const auto job = [&](const T* from, T* to) {
        return RmsNorm{from, weight.data(), to, size, heads, heads * size, weights, 1e-5f, plus_one};
    };
    run(job(x.data(), y.data()), dtype_of<T>, n_rows);
    for (int64_t i = 0; i < n_rows * heads; ++i) {
        double squares = 0;
        for (int64_t j = 0; j < size; ++j) squares += std::pow(to_float(x[size_t(i * size + j)]), 2);
        for (int64_t j = 0; j < size; ++j) {
            const double normed = to_float(x[size_t(i * size + j)]) / std::sqrt(squares / double(size) + 1e-5);
            const double w = to_float(weight[size_t(i % heads % weights * size + j)]);
            // Rounded twice where the normed value is rounded first.
            const double twice = sizeof(T) == 2 && !plus_one ? std::abs(normed * w) * 1000 : 0;
            check_near(y[size_t(i * size + j)], normed * (plus_one ? 1 + w : w), std::abs(normed) + twice);
        }
    }
    for (int64_t row = 0; row < n_rows; ++row) {
        run(job(x.data() + row * heads * size, alone.data()), dtype_of<T>, 1);
        check_same(alone.data(), y.data() + row * heads * size, heads * size);
    }
}

template <class T>
void check_layer_norm(int64_t size) {
    const auto x = noise<T>(n_rows * size, 1), weight = noise<T>(size, 2), bias = noise<T>(size, 3);
    std::vector<T> y(x.size());
    run(LayerNorm{x.data(), weight.data(), bias.data(), y.data(), size, size, 1e-2f, 1.0f}, dtype_of<T>, n_rows);
    for (int64_t row = 0; row < n_rows; ++row) {
        double mean = 0, squares = 0;
        for (int64_t j = 0; j < size; ++j) mean += to_float(x[size_t(row * size + j)]) / double(size);
        for (int64_t j = 0; j < size; ++j) squares += std::pow(to_float(x[size_t(row * size + j)]) - mean, 2);
        for (int64_t j = 0; j < size; ++j) {
            const double normed = (to_float(x[size_t(row * size + j)]) - mean) / std::sqrt(squares / double(size) + 1e-2);
            const double exact = normed * (1 + double(to_float(weight[size_t(j)]))) + to_float(bias[size_t(j)]);
            check_near(y[size_t(row * size + j)], exact, 10 + std::abs(normed));
        }
    }
}

template <class T>
void check_rope(int64_t half, int64_t rest) {
    const int64_t heads = 3, dim = 2 * half + rest, positions[n_rows] = {0, 1, 77, 4095, 100000};
    const auto x = noise<T>(n_rows * heads * dim, 1);
    const auto inv_freq = noise<float>(half, 2, 0.01f);
    std::vector<float> angles(size_t(n_rows * 2 * half));
    std::vector<T> y(x.size());
    run(RopeAngles{positions, inv_freq.data(), angles.data(), half, 1.5f}, n_rows);
    run(Rope{x.data(), angles.data(), y.data(), heads * dim, heads, dim, half}, dtype_of<T>, n_rows);
    for (int64_t i = 0; i < n_rows * heads; ++i) {
        const T *from = x.data() + i * dim, *to = y.data() + i * dim;
        for (int64_t j = 0; j < half; ++j) {
            const double angle = float(positions[i / heads]) * inv_freq[size_t(j)];
            const double cosine = 1.5 * std::cos(angle), sine = 1.5 * std::sin(angle);
            const double a = to_float(from[j]), b = to_float(from[half + j]);
            check_near(to[j], a * cosine - b * sine, std::abs(a) + std::abs(b));
            check_near(to[half + j], b * cosine + a * sine, std::abs(a) + std::abs(b));
        }
        check_same(from + 2 * half, to + 2 * half, rest);
    }
}

template <class T>
void check_all() {
    for (int64_t size : sizes) {
        for (int kind = 0; kind < int(Elementwise::count); ++kind) check_elementwise<T>(Elementwise(kind), size);
        for (bool plus_one : {false, true}) {
            check_rms_norm<T>(size, 1, 1, plus_one);
            check_rms_norm<T>(size, 4, 2, plus_one);
        }
        check_layer_norm<T>(size);
        check_rope<T>(size, 0);
        check_rope<T>(size, 3);
    }
    check_far_values<T>();
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
