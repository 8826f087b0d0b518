// Routers: a few numbers a row, computed with the C library, the same at every ISA level.
#include <algorithm>
#include <cmath>
#include <limits>
#include <stdexcept>

#include "core/pool.h"
#include "ops/moe.h"

namespace headrace {
namespace {

constexpr int64_t chunk_rows = 8;
constexpr int64_t most_experts = 1024;
constexpr float never = -std::numeric_limits<float>::infinity();

template <class F>
void each_row(int64_t n_rows, const F& f) {
    Pool::instance().each((n_rows + chunk_rows - 1) / chunk_rows, [&](int64_t chunk, int) {
        for (int64_t row = chunk * chunk_rows; row < std::min(n_rows, (chunk + 1) * chunk_rows); ++row) f(row);
    });
}

// The k largest of n scores, the lower index first among equals. Indices are valid and differ even where scores are not
// numbers, so that a row gone wrong harms itself alone.
void largest(const float* scores, int64_t n, int64_t k, int32_t* ids) {
    bool taken[most_experts] = {};
    for (int64_t slot = 0; slot < k; ++slot) {
        int64_t best = -1;
        for (int64_t i = 0; i < n; ++i)
            if (!taken[i] && (best < 0 || scores[i] > scores[best])) best = i;
        taken[best] = true;
        ids[slot] = int32_t(best);
    }
}

void check(const Route& job) {
    if (job.k < 1 || job.k > job.n_experts || job.n_experts > most_experts)
        throw std::invalid_argument("a router has at most 1024 experts, and chooses at least 1 and at most all of them");
}

float sigmoid(float x) { return 1.0f / (1.0f + std::exp(-x)); }

// Scores of experts outside the groups with the largest sums of their two best become `never`.
void keep_groups(const SigmoidRoute& job, float* scores) {
    const int64_t size = job.route.n_experts / job.n_groups;
    float sums[most_experts];
    for (int64_t group = 0; group < job.n_groups; ++group) {
        float first = never, second = never;
        for (int64_t i = group * size; i < (group + 1) * size; ++i) {
            if (scores[i] > first)
                second = first, first = scores[i];
            else if (scores[i] > second)
                second = scores[i];
        }
        sums[group] = first + second;
    }
    int32_t order[most_experts];
    largest(sums, job.n_groups, job.n_groups, order);
    for (int64_t i = job.top_groups; i < job.n_groups; ++i)
        std::fill_n(scores + order[i] * size, size, never);
}

}  // namespace

void run(const Route& job, int64_t n_rows) {
    check(job);
    each_row(n_rows, [&](int64_t row) {
        const float* logits = job.logits + row * job.logits_stride;
        int32_t* ids = job.ids + row * job.k;
        float* weights = job.weights + row * job.k;
        largest(logits, job.n_experts, job.k, ids);
        const float top = logits[ids[0]];
        float sum = 0.0f;
        if (!job.normalised)
            for (int64_t i = 0; i < job.n_experts; ++i) sum += std::exp(logits[i] - top);
        for (int64_t slot = 0; slot < job.k; ++slot) {
            weights[slot] = std::exp(logits[ids[slot]] - top);
            if (job.normalised) sum += weights[slot];
        }
        for (int64_t slot = 0; slot < job.k; ++slot) weights[slot] /= sum;
    });
}

void run(const SigmoidRoute& job, int64_t n_rows) {
    const Route& route = job.route;
    check(route);
    const int64_t size = job.n_groups > 0 ? route.n_experts / job.n_groups : 0;
    if (job.n_groups < 1 || size * job.n_groups != route.n_experts || job.top_groups < 1 || job.top_groups > job.n_groups ||
        job.top_groups * size < route.k || (job.n_groups > 1 && size < 2))
        throw std::invalid_argument("groups of experts are equal, hold 2 or more, and enough of them stay to choose from");
    each_row(n_rows, [&](int64_t row) {
        const float* logits = route.logits + row * route.logits_stride;
        int32_t* ids = route.ids + row * route.k;
        float* weights = route.weights + row * route.k;
        float scores[most_experts];
        for (int64_t i = 0; i < route.n_experts; ++i)
            scores[i] = job.correction ? sigmoid(logits[i]) + job.correction[i] : logits[i];
        if (job.top_groups < job.n_groups) keep_groups(job, scores);
        largest(scores, route.n_experts, route.k, ids);
        float sum = 0.0f;
        for (int64_t slot = 0; slot < route.k; ++slot) sum += weights[slot] = sigmoid(logits[ids[slot]]);
        const float divisor = route.normalised ? sum + 1e-20f : 1.0f;
        for (int64_t slot = 0; slot < route.k; ++slot) weights[slot] = weights[slot] / divisor * job.factor;
    });
}

}  // namespace headrace
