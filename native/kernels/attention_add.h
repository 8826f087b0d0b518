// What a cross-attention layer adds to the rows that see something.
#pragma once

#include "kernels/attention_args.h"
#include "kernels/vectors.h"

namespace headrace {
namespace {

template <class T>
void add_where_seen(const AddWhereSeen& job, const KeyRange* seen, int64_t first_row, int64_t last_row) {
    for (int64_t row = first_row; row < last_row; ++row) {
        const T* x = static_cast<const T*>(job.x) + row * job.x_stride;
        const T* other = static_cast<const T*>(job.other) + row * job.other_stride;
        T* y = static_cast<T*>(job.y) + row * job.size;
        if (seen[row].nothing()) {
            for (int64_t i = 0; i < job.size; ++i) y[i] = x[i];
            continue;
        }
        by_vector(job.size, [&](int64_t i, int n) {
            Vec::fma(Vec::load(other + i, n), Vec::all(job.c), Vec::load(x + i, n)).store(y + i, n);
        });
    }
}

}  // namespace
}  // namespace headrace
