// Rows to their experts and back.
#pragma once

#include "kernels/moe_args.h"
#include "kernels/vectors.h"

namespace headrace {
namespace {

// Rows [first, last) of `to` [slots, size]: the inputs of the slots in `order`.
template <class T>
void gather_slots(const Experts& job, const int32_t* order, int64_t first, int64_t last, void* to) {
    for (int64_t place = first; place < last; ++place) {
        const int64_t slot = order[place];
        const T* x = static_cast<const T*>(job.x) + slot / job.k * job.x_stride;
        T* y = static_cast<T*>(to) + place * job.size;
        const Vec factor = Vec::all(job.scaled_input ? job.weights[slot] : 1.0f);
        by_vector(job.size, [&](int64_t i, int n) { (Vec::load(x + i, n) * factor).store(y + i, n); });
    }
}

// Values [first, last) of row `row`: outputs [slots, size] lie at places[slot]; they are added in the order of slots.
template <class T>
void combine_slots(const Experts& job, const float* outputs, const int32_t* places, int64_t row, int64_t first, int64_t last) {
    T* y = static_cast<T*>(job.y) + row * job.size;
    for (int64_t i = first; i < last; i += Vec::lanes) {
        const int n = int(last - i < Vec::lanes ? last - i : Vec::lanes);
        Vec sum = Vec::zero();
        for (int64_t slot = row * job.k; slot < (row + 1) * job.k; ++slot) {
            const Vec output = Vec::load(outputs + int64_t(places[slot]) * job.size + i, n);
            sum = job.scaled_input ? sum + output : Vec::fma(Vec::all(job.weights[slot]), output, sum);
        }
        sum.store(y + i, n);
    }
}

}  // namespace
}  // namespace headrace
