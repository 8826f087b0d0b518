// Norms of rows: four accumulators in turn, added pairwise, whatever the number of rows.
#pragma once

#include <cmath>

#include "kernels/norm_args.h"
#include "kernels/vectors.h"

namespace headrace {
namespace {

// Vector i of a row is added to sum i % 4, a part of a vector to the last one.
template <class T>
float sum_of_squares(const T* x, int64_t size) {
    Vec sums[4] = {Vec::zero(), Vec::zero(), Vec::zero(), Vec::zero()};
    const auto add = [&](int turn, int64_t i, int n) {
        const Vec v = Vec::load(x + i, n);
        sums[turn] = Vec::fma(v, v, sums[turn]);
    };
    int64_t i = 0;
    for (; i + 4 * Vec::lanes <= size; i += 4 * Vec::lanes)
        for (int turn = 0; turn < 4; ++turn) add(turn, i + turn * Vec::lanes, Vec::lanes);
    for (int turn = 0; turn < 3 && i + Vec::lanes <= size; ++turn, i += Vec::lanes) add(turn, i, Vec::lanes);
    if (i < size) add(3, i, int(size - i));
    return ((sums[0] + sums[1]) + (sums[2] + sums[3])).sum();
}

template <class T>
void rms_norm(const RmsNorm& job, int64_t first_row, int64_t last_row) {
    const Vec one = Vec::all(1.0f);
    for (int64_t i = first_row * job.heads; i < last_row * job.heads; ++i) {
        const int64_t row = i / job.heads, head = i % job.heads;
        const T* x = static_cast<const T*>(job.x) + row * job.x_stride + head * job.size;
        const T* weight = static_cast<const T*>(job.weight) + head % job.weights * job.size;
        T* y = static_cast<T*>(job.y) + i * job.size;
        const Vec scale = Vec::all(1.0f / std::sqrt(sum_of_squares(x, job.size) / float(job.size) + job.eps));
        by_vector(job.size, [&](int64_t at, int n) {
            const Vec normed = Vec::load(x + at, n) * scale, w = Vec::load(weight + at, n);
            (job.plus_one ? normed * (w + one) : rounded<T>(normed) * w).store(y + at, n);
        });
    }
}

template <class T>
void layer_norm(const LayerNorm& job, int64_t first_row, int64_t last_row) {
    const T* weight = static_cast<const T*>(job.weight);
    const T* bias = static_cast<const T*>(job.bias);
    for (int64_t row = first_row; row < last_row; ++row) {
        const T* x = static_cast<const T*>(job.x) + row * job.x_stride;
        T* y = static_cast<T*>(job.y) + row * job.size;
        Vec sum = Vec::zero();
        by_vector(job.size, [&](int64_t at, int n) { sum = sum + Vec::load(x + at, n); });
        const float mean = sum.sum() / float(job.size);
        // Squares of whole vectors, then of the rest one by one: lanes behind the row would count as mean^2.
        Vec squares = Vec::zero();
        int64_t at = 0;
        for (; at + Vec::lanes <= job.size; at += Vec::lanes) {
            const Vec apart = Vec::load(x + at) - Vec::all(mean);
            squares = Vec::fma(apart, apart, squares);
        }
        float total = squares.sum();
        for (; at < job.size; ++at) total += (to_float(x[at]) - mean) * (to_float(x[at]) - mean);
        const Vec scale = Vec::all(1.0f / std::sqrt(total / float(job.size) + job.eps));
        by_vector(job.size, [&](int64_t i, int n) {
            const Vec normed = (Vec::load(x + i, n) - Vec::all(mean)) * scale;
            const Vec factor = Vec::load(weight + i, n) + Vec::all(job.plus);
            Vec::fma(normed, factor, Vec::load(bias + i, n)).store(y + i, n);
        });
    }
}

}  // namespace
}  // namespace headrace
