// Norms of rows: four accumulators in turn, added pairwise, whatever the number of rows.
#pragma once

#include <cmath>

#include "kernels/norm_args.h"

namespace headrace {
namespace {

template <class T>
float sum_of_squares(const T* x, int64_t size) {
    Vec sums[4] = {Vec::zero(), Vec::zero(), Vec::zero(), Vec::zero()};
    int64_t i = 0;
    for (int turn = 0; i + Vec::lanes <= size; i += Vec::lanes, turn = (turn + 1) & 3) {
        const Vec v = Vec::load(x + i);
        sums[turn] = Vec::fma(v, v, sums[turn]);
    }
    if (i < size) {
        const Vec v = Vec::load(x + i, int(size - i));
        sums[3] = Vec::fma(v, v, sums[3]);
    }
    return ((sums[0] + sums[1]) + (sums[2] + sums[3])).sum();
}

// x rounded to T and back, lane by lane.
template <class T>
Vec rounded(Vec x) {
    T part[Vec::lanes];
    x.store(part);
    return Vec::load(part);
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
        for (int64_t at = 0; at < job.size; at += Vec::lanes) {
            const int n = int(job.size - at < Vec::lanes ? job.size - at : Vec::lanes);
            const Vec normed = Vec::load(x + at, n) * scale;
            const Vec w = Vec::load(weight + at, n);
            (job.plus_one ? normed * (w + one) : rounded<T>(normed) * w).store(y + at, n);
        }
    }
}

template <class T>
void layer_norm(const LayerNorm& job, int64_t first_row, int64_t last_row) {
    const auto left = [&](int64_t at) { return int(job.size - at < Vec::lanes ? job.size - at : Vec::lanes); };
    const T* weight = static_cast<const T*>(job.weight);
    const T* bias = static_cast<const T*>(job.bias);
    for (int64_t row = first_row; row < last_row; ++row) {
        const T* x = static_cast<const T*>(job.x) + row * job.x_stride;
        T* y = static_cast<T*>(job.y) + row * job.size;
        Vec sum = Vec::zero();
        for (int64_t at = 0; at < job.size; at += Vec::lanes) sum = sum + Vec::load(x + at, left(at));
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
        for (at = 0; at < job.size; at += Vec::lanes) {
            const Vec normed = (Vec::load(x + at, left(at)) - Vec::all(mean)) * scale;
            const Vec factor = Vec::load(weight + at, left(at)) + Vec::all(1.0f);
            Vec::fma(normed, factor, Vec::load(bias + at, left(at))).store(y + at, left(at));
        }
    }
}

}  // namespace
}  // namespace headrace
