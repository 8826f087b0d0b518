// The state of a head's softmax: empty, added to another, and turned into a row of y.
#pragma once

#include "kernels/attention_args.h"
#include "simd/exp.h"

namespace headrace {
namespace {

constexpr float log2_e = 1.44269504088896341f;

static inline PartialHead& head_state(float* partials, const Attend& job, int64_t head) {
    return *reinterpret_cast<PartialHead*>(partials + head * partial_floats(job));
}

static inline float* weighted(float* partials, const Attend& job, int64_t head) {
    return partials + head * partial_floats(job) + 16;
}

// Adds the state `from` of a head behind `into`; an empty one changes nothing. `factor`: that of the one with the smaller
// scores.
static inline void merge_head(const Attend& job, float* into, const float* from, float factor) {
    PartialHead& a = *reinterpret_cast<PartialHead*>(into);
    const PartialHead& b = *reinterpret_cast<const PartialHead*>(from);
    if (b.sum == 0.0f) return;
    if (a.sum == 0.0f) {
        a = b;
        for (int64_t i = 16; i < partial_floats(job); i += Vec::lanes) Vec::load(from + i).store(into + i);
        return;
    }
    const bool grows = b.largest > a.largest;
    const float scale_a = grows ? factor : 1.0f, scale_b = grows ? 1.0f : factor;
    a = {grows ? b.largest : a.largest, __builtin_fmaf(b.sum, scale_b, a.sum * scale_a)};
    for (int64_t i = 16; i < partial_floats(job); i += Vec::lanes) {
        const Vec mine = Vec::load(into + i) * Vec::all(scale_a);
        Vec::fma(Vec::load(from + i), Vec::all(scale_b), mine).store(into + i);
    }
}

// The same for the states of `heads` heads.
static inline void merge(const Attend& job, float* into, const float* from, int64_t heads) {
    const int64_t stride = partial_floats(job);
    for (int64_t first = 0; first < heads; first += Vec::lanes) {
        const int64_t n = heads - first < Vec::lanes ? heads - first : Vec::lanes;
        float factors[Vec::lanes] = {};
        for (int64_t i = 0; i < n; ++i) {
            const float a = head_state(into, job, first + i).largest;
            const float b = reinterpret_cast<const PartialHead*>(from + (first + i) * stride)->largest;
            factors[i] = b > a ? a - b : b - a;
        }
        power_of_two_below(Vec::load(factors)).store(factors);
        for (int64_t i = first; i < first + n; ++i) merge_head(job, into + i * stride, from + i * stride, factors[i - first]);
    }
}

static inline void clear(PartialHead& state) { state = {-__builtin_inff(), 0.0f}; }

// A row of y. Zeros for one that saw nothing: then there are no weighted values.
template <class Q>
void finish(const Attend& job, const float* partial, int64_t head, Q* y) {
    const PartialHead& state = *reinterpret_cast<const PartialHead*>(partial);
    float factor = 1.0f, sum = state.sum;
    if (job.sinks) {
        // As if a key of weighted value zero had this score.
        const float sink = to_float(static_cast<const Q*>(job.sinks)[head]) * log2_e;
        const float largest = state.largest > sink ? state.largest : sink;
        factor = power_of_two_below(state.largest - largest);
        sum = __builtin_fmaf(state.sum, factor, power_of_two_below(sink - largest));
    }
    for (int64_t i = 0; i < job.value_dim; i += Vec::lanes) {
        // Keys that a row does not see may have added zeros of either sign: the sum of zeros is given one.
        const Vec value = state.sum == 0.0f
                              ? Vec::zero()
                              : Vec::load(partial + 16 + i) * Vec::all(factor) / Vec::all(sum) + Vec::zero();
        value.store(y + i, int(job.value_dim - i < Vec::lanes ? job.value_dim - i : Vec::lanes));
    }
}

}  // namespace
}  // namespace headrace
