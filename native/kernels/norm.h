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
    for (int64_t row = first_row; row < last_row; ++row) {
        const T* x = static_cast<const T*>(job.x) + row * job.x_stride;
        const T* weight = static_cast<const T*>(job.weight) + (row % job.heads) * job.size;
        T* y = static_cast<T*>(job.y) + row * job.y_stride;
        const Vec scale = Vec::all(1.0f / std::sqrt(sum_of_squares(x, job.size) / float(job.size) + job.eps));
        const Vec one = Vec::all(1.0f);
        for (int64_t i = 0; i < job.size; i += Vec::lanes) {
            const int n = int(job.size - i < Vec::lanes ? job.size - i : Vec::lanes);
            const Vec normed = Vec::load(x + i, n) * scale;
            const Vec w = Vec::load(weight + i, n);
            const Vec result = job.plus_one ? normed * (w + one) : rounded<T>(normed) * w;
            result.store(y + i, n);
        }
    }
}

}  // namespace
}  // namespace headrace
