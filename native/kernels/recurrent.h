// Recurrences, row after row in order of position: a row's state and result follow from the state before it and its own
// input, whatever the cut into steps was.
//
// A row of x, gated delta rule: for each unit [q | k | the heads' v | the heads' z], then for each unit [b | a] of its heads.
// Mamba2: [gate of all heads | x of all heads | B of all units | C of all units | dt of all heads].
#pragma once

#include <cmath>
#include <cstring>

#include "kernels/elementwise.h"
#include "kernels/norm.h"
#include "kernels/recurrent_args.h"

namespace headrace {
namespace {

static inline int lanes_left(int64_t at, int64_t size) { return int(size - at < Vec::lanes ? size - at : Vec::lanes); }

static inline float softplus(float x) { return x > 20.0f ? x : std::log1p(exp_of(x)); }

template <class T>
void widen(const T* from, float* to, int64_t size) {
    for (int64_t i = 0; i < size; i += Vec::lanes) Vec::load(from + i, lanes_left(i, size)).store(to + i, lanes_left(i, size));
}

// The channels of a unit, one behind another.
template <Recurrent kind, class T>
void gather_channels(const Recurrence& job, const T* x, int64_t unit, float* to) {
    const int64_t values = job.heads * job.cols, all = job.units * values;
    if constexpr (kind == Recurrent::gated_delta) {
        widen(x + unit * (2 * job.rows + 2 * values), to, channels_of(job));
    } else {
        widen(x + all + unit * values, to, values);
        widen(x + 2 * all + unit * job.rows, to + values, job.rows);
        widen(x + 2 * all + (job.units + unit) * job.rows, to + values + job.rows, job.rows);
    }
}

// y = silu(sum of taps, oldest first); `fresh` becomes the newest of the tail.
static inline void convolve(const Recurrence& job, int64_t unit, float* tail, const float* fresh, float* y) {
    const int64_t n = channels_of(job), kept = job.taps - 1;
    const float* weights = job.conv + unit * job.taps * n;
    for (int64_t i = 0; i < n; i += Vec::lanes) {
        const int left = lanes_left(i, n);
        Vec sum = job.conv_bias ? Vec::load(job.conv_bias + unit * n + i, left) : Vec::zero();
        for (int64_t tap = 0; tap < kept; ++tap)
            sum = Vec::fma(Vec::load(tail + tap * n + i, left), Vec::load(weights + tap * n + i, left), sum);
        const Vec now = Vec::load(fresh + i, left);
        silu(Vec::fma(now, Vec::load(weights + kept * n + i, left), sum)).store(y + i, left);
    }
    if (kept == 0) return;
    std::memmove(tail, tail + n, size_t((kept - 1) * n) * sizeof(float));
    std::memcpy(tail + (kept - 1) * n, fresh, size_t(n) * sizeof(float));
}

// What a head does to its state S [rows, cols], with value v, key k, query q:
//     S = decay S;  u = factor (v - S^T k) or factor v;  S = S + k u;  out = S^T q
struct HeadStep {
    const float* k;
    const float* q;
    const float* v;
    float* out;
    float decay;
    float factor;
};

// Columns at .. at + n_vecs * lanes - 1 of a head; a single vector has `left` of them.
template <Recurrent kind, int n_vecs>
void step_columns(float* state, int64_t rows, int64_t cols, const HeadStep& job, int64_t at, int left) {
    Vec u[n_vecs], out[n_vecs];
    const auto load = [&](const float* p) { return n_vecs > 1 ? Vec::load(p) : Vec::load(p, left); };
    const auto store = [&](Vec x, float* p) { n_vecs > 1 ? x.store(p) : x.store(p, left); };
    const Vec decay = Vec::all(job.decay);
    for (int i = 0; i < n_vecs; ++i) u[i] = out[i] = Vec::zero();
    if constexpr (kind == Recurrent::gated_delta) {
        for (int64_t row = 0; row < rows; ++row) {
            const Vec k = Vec::all(job.k[row]);
            for (int i = 0; i < n_vecs; ++i)
                u[i] = Vec::fma(load(state + row * cols + at + i * Vec::lanes) * decay, k, u[i]);
        }
    }
    for (int i = 0; i < n_vecs; ++i)
        u[i] = (load(job.v + at + i * Vec::lanes) - u[i]) * Vec::all(job.factor);
    for (int64_t row = 0; row < rows; ++row) {
        const Vec k = Vec::all(job.k[row]), q = Vec::all(job.q[row]);
        float* place = state + row * cols + at;
        for (int i = 0; i < n_vecs; ++i) {
            const Vec now = Vec::fma(k, u[i], load(place + i * Vec::lanes) * decay);
            store(now, place + i * Vec::lanes);
            out[i] = Vec::fma(now, q, out[i]);
        }
    }
    for (int i = 0; i < n_vecs; ++i) store(out[i], job.out + at + i * Vec::lanes);
}

template <Recurrent kind>
void step_head(float* state, int64_t rows, int64_t cols, const HeadStep& job) {
    constexpr int wide = 4;
    int64_t at = 0;
    for (; at + wide * Vec::lanes <= cols; at += wide * Vec::lanes)
        step_columns<kind, wide>(state, rows, cols, job, at, Vec::lanes);
    for (; at < cols; at += Vec::lanes) step_columns<kind, 1>(state, rows, cols, job, at, lanes_left(at, cols));
}

static inline void scale_by(float* x, int64_t size, float factor) {
    for (int64_t i = 0; i < size; i += Vec::lanes)
        (Vec::load(x + i, lanes_left(i, size)) * Vec::all(factor)).store(x + i, lanes_left(i, size));
}

// One row of a unit's heads: `mixed` are its channels after the convolution (queries and keys are normed in place).
template <Recurrent kind, class T>
void step_unit(const Recurrence& job, const T* x, int64_t unit, float* state, float* mixed, float* out) {
    const int64_t rows = job.rows, cols = job.cols, values = job.heads * cols, all = job.units * values;
    if constexpr (kind == Recurrent::gated_delta) {
        const float q = 1.0f / std::sqrt(sum_of_squares(mixed, rows) + 1e-6f);
        scale_by(mixed, rows, q * (1.0f / std::sqrt(float(rows))));
        scale_by(mixed + rows, rows, 1.0f / std::sqrt(sum_of_squares(mixed + rows, rows) + 1e-6f));
    }
    for (int64_t j = 0; j < job.heads; ++j) {
        const int64_t head = unit * job.heads + j;
        float* place = state + j * rows * cols;
        if constexpr (kind == Recurrent::gated_delta) {
            const T* gates = x + job.units * (2 * rows + 2 * values) + unit * 2 * job.heads;
            const float beta = 1.0f / (1.0f + exp_of(-to_float(gates[j])));
            const float decay = exp_of(job.decay[head] * softplus(to_float(gates[job.heads + j]) + job.dt_bias[head]));
            step_head<kind>(place, rows, cols, {mixed + rows, mixed, mixed + 2 * rows + j * cols, out + j * cols, decay, beta});
        } else {
            const float raw = softplus(to_float(x[2 * all + 2 * job.units * rows + head]) + job.dt_bias[head]);
            const float dt = raw < job.dt_min ? job.dt_min : raw > job.dt_max ? job.dt_max : raw;
            const float* v = mixed + j * cols;
            float* to = out + j * cols;
            step_head<kind>(place, rows, cols, {mixed + values, mixed + values + rows, v, to, exp_of(dt * job.decay[head]), dt});
            for (int64_t i = 0; i < cols; i += Vec::lanes) {
                const int left = lanes_left(i, cols);
                Vec::fma(Vec::load(v + i, left), Vec::all(job.skip[head]), Vec::load(to + i, left)).store(to + i, left);
            }
        }
    }
}

// y = norm(x) w silu(z) over one head (gated delta rule); y = norm(x silu(z)) w over the whole unit (Mamba2).
template <Recurrent kind, class T>
void gated_norm(const Recurrence& job, const T* x, int64_t unit, float* out, T* y) {
    const int64_t values = job.heads * job.cols;
    constexpr bool delta = kind == Recurrent::gated_delta;
    const T* z = delta ? x + unit * (2 * job.rows + 2 * values) + 2 * job.rows + values : x + unit * values;
    const int64_t size = delta ? job.cols : values;
    for (int64_t first = 0; first < values; first += size) {
        float* part = out + first;
        const float* weight = delta ? job.norm : job.norm + unit * values;
        for (int64_t i = 0; !delta && i < size; i += Vec::lanes) {
            const int left = lanes_left(i, size);
            (Vec::load(part + i, left) * silu(Vec::load(z + i, left))).store(part + i, left);
        }
        const Vec scale = Vec::all(1.0f / std::sqrt(sum_of_squares(part, size) / float(size) + job.eps));
        for (int64_t i = 0; i < size; i += Vec::lanes) {
            const int left = lanes_left(i, size);
            Vec value = Vec::load(part + i, left) * scale * Vec::load(weight + i, left);
            if (delta) value = value * silu(Vec::load(z + first + i, left));
            value.store(y + unit * values + first + i, left);
        }
    }
}

// All rows of a sequence, one unit of them. Where a row's state belongs, the state before it is moved first.
template <Recurrent kind, class T>
void recur(const Recurrence& job, const StateRows& seq, int64_t unit, float* scratch) {
    const int64_t floats = unit_floats(job), channels = channels_of(job), width = job.units * job.heads * job.cols;
    float* const apart = scratch;
    float* const fresh = apart + floats;
    float* const mixed = fresh + channels;
    float* const out = mixed + channels;
    const auto place_at = [&](int64_t position) {
        return job.states + seq.blocks[position / block_tokens] * job.block_stride + unit * floats;
    };
    float* state = seq.start ? place_at(seq.start - 1) : nullptr;
    for (int64_t i = 0; i < seq.n_rows; ++i) {
        const bool known = i < seq.n_known;
        const T* x = static_cast<const T*>(job.x) + (seq.first_row + i) * job.x_stride;
        float* const place = known ? place_at(seq.start + i) : apart;
        if (!state) std::memset(place, 0, size_t(floats) * sizeof(float));
        else if (state != place) std::memcpy(place, state, size_t(floats) * sizeof(float));
        state = place;
        if (!known && unit == 0)
            std::memcpy(static_cast<T*>(job.drafts) + (seq.first_draft + i - seq.n_known) * job.x_stride, x,
                        size_t(job.x_stride) * sizeof(T));
        gather_channels<kind>(job, x, unit, fresh);
        convolve(job, unit, state, fresh, mixed);
        step_unit<kind>(job, x, unit, state + tail_floats(job), mixed, out);
        if (job.y) gated_norm<kind>(job, x, unit, out, static_cast<T*>(job.y) + (seq.first_row + i) * width);
    }
}

}  // namespace
}  // namespace headrace
