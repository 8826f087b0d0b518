#include "sampler/sampler.h"

#include <algorithm>
#include <cmath>

#include "core/pool.h"
#include "kernels/sampler_math.h"
#include "sampler/edits.h"
#include "sampler/row.h"

namespace headrace {
namespace {

// Logprobs of `token` and of the first n_top tokens up to `limit`, among which a mass of `total` is shared.
struct LogprobsWanted {
    int64_t token;
    int64_t n_top;
    uint64_t limit;
    int64_t total;
};

void put_logprobs(Row& row, const RowView& view, const LogprobsWanted& wanted, const LogprobsOut& out, int64_t r) {
    const double log_total = log_of(double(wanted.total) * 0x1p-40);
    const double top = view.scaled ? 0.0 : double(view.top);
    const auto logprob = [&](int64_t token) {
        const float x = view.scaled ? (view.x[token] - view.top) / view.temperature : view.x[token];
        return (double(x) - top) - log_total;
    };
    out.logprobs[r] = logprob(wanted.token);
    out.ranks[r] = row.count(view, row.key(view, wanted.token));
    out.counts[r] = 0;
    const int64_t n_top = std::min({wanted.n_top, view.size, out.width});
    if (n_top == 0) return;
    const auto keys = row.collect(view, 0, row.limit_by_count(view, n_top, wanted.limit));
    std::sort(keys.begin(), keys.end());
    out.counts[r] = int64_t(keys.size());
    for (size_t i = 0; i < keys.size(); ++i) {
        const int64_t token = int64_t(uint32_t(keys[i]));
        out.top_ids[r * out.width + int64_t(i)] = token;
        out.top_logprobs[r * out.width + int64_t(i)] = logprob(token);
    }
}

void put_raw_logprobs(Row& row, int64_t token, int64_t n_top, const LogprobsOut& out, int64_t r) {
    const RowView apart = row.scaled(1.0f), plain = row.plain();
    const int64_t total = row.sum_masses(apart, whole_row(apart));
    put_logprobs(row, plain, {token, n_top, whole_row(plain), total}, out, r);
}

// The limit of what top-k, top-p and min-p keep, in this order.
uint64_t kept_limit(Row& row, const RowView& view, const SlotOptions& options, int64_t slot, double top_p) {
    uint64_t limit = whole_row(view);
    if (options.top_k[slot] < view.size) limit = row.limit_by_count(view, options.top_k[slot], limit);
    if (top_p < 1.0) limit = row.limit_by_mass(view, top_p, limit);
    const int64_t least = int64_t(options.min_p[slot] * double(mass_one));
    return least > 0 ? std::min(limit, limit_of_least_mass(least)) : limit;
}

Stream stream_of(const SlotOptions& options, int64_t slot, int64_t position) {
    return {uint32_t(options.seed_low[slot]), uint32_t(options.seed_high[slot]), uint32_t(position),
            uint32_t(options.output_index[slot])};
}

}  // namespace

template <class F>
void NativeSampler::each_row(int64_t n_rows, int64_t most_edits, bool has_masks, const F& f) {
    Pool& pool = Pool::instance();
    const int n_threads = pool.threads();
    if (int64_t(scratch_.size()) < n_threads) scratch_.resize(size_t(n_threads));
    const bool side_by_side = n_rows >= 2 * n_threads;
    const int64_t n_parts = side_by_side ? 1 : parts_of(vocab_size_, n_threads);
    for (int thread = 0; thread < (side_by_side ? n_threads : 1); ++thread)
        scratch_[size_t(thread)].reserve(vocab_size_, n_parts, most_edits, has_masks);
    if (side_by_side)
        pool.each(n_rows, [&](int64_t r, int thread) { f(r, scratch_[size_t(thread)], 1); });
    else
        for (int64_t r = 0; r < n_rows; ++r) f(r, scratch_[0], n_parts);
}

void NativeSampler::sample(const SampleJob& job, int64_t n_rows) {
    each_row(n_rows, most_edits(job, n_rows), job.masks.index != nullptr, [&](int64_t r, Scratch& scratch, int64_t n_parts) {
        sample_row(job, r, scratch, n_parts);
    });
}

void NativeSampler::sample_row(const SampleJob& job, int64_t r, Scratch& scratch, int64_t n_parts) const {
    const int64_t slot = job.slots[r], flags = options_.flags[slot];
    EditedRow edited(job, vocab_size_, options_, r, scratch);
    Row row(edited.logits(), vocab_size_, scratch, n_parts);
    float& top = job.tops[r] = row.find_top();
    int64_t& token = job.tokens[r] = -1;
    if (std::isfinite(top)) {
        token = row.top_token();
        if (flags & (sample_draw | sample_processed_logprobs)) {
            const RowView view = row.scaled(options_.temperature[slot]);
            const uint64_t limit = kept_limit(row, view, options_, slot, job.top_p[r]);
            if (flags & sample_draw) token = row.race(view, limit, stream_of(options_, slot, job.positions[r]));
            if (flags & sample_processed_logprobs)
                put_logprobs(row, view, {token, options_.n_logprobs[slot], limit, row.sum_masses(view, limit)},
                             job.logprobs, r);
        }
    }
    edited.restore();
    if (!(flags & sample_raw_logprobs) || token < 0) return;
    Row own(job.model_logits + r * job.model_stride, vocab_size_, scratch, n_parts);
    top = own.find_top();
    if (std::isfinite(top))
        put_raw_logprobs(own, token, options_.n_logprobs[slot], job.logprobs, r);
    else
        token = -1;  // no edit may hide that the model went wrong
}

void NativeSampler::prompt_logprobs(const PromptJob& job, int64_t n_rows) {
    each_row(n_rows, 0, false, [&](int64_t r, Scratch& scratch, int64_t n_parts) {
        Row row(job.logits + r * job.stride, vocab_size_, scratch, n_parts);
        job.tops[r] = row.find_top();
        if (std::isfinite(job.tops[r])) put_raw_logprobs(row, job.next_tokens[r], job.n_top, job.logprobs, r);
    });
}

}  // namespace headrace
