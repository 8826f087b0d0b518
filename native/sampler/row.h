// One row of logits: its passes, in parts that threads may share, and the limits of what filters keep.
//
// The tokens of a row have one order (kernels/sampler_args.h). Every filter keeps a prefix of it, so what is kept is
// said by the key of the last token kept: its limit. Limits are found by selection; nothing is sorted but short lists.
#pragma once

#include <cstdint>
#include <span>

#include "kernels/sampler_args.h"
#include "sampler/scratch.h"

namespace headrace {

// How many parts a row is cut into when threads share it.
int64_t parts_of(int64_t size, int n_threads);

class Row {
  public:
    // `scratch` is reserved for n_parts; with more than one, the pool's threads share the passes.
    Row(const float* x, int64_t size, Scratch& scratch, int64_t n_parts);

    // The largest logit; NaN if there is one. Everything below needs it to have been called, and a finite result.
    float find_top();
    int64_t top_token() const;

    // The row in the order of (x - top) / temperature, or of x.
    RowView scaled(float temperature) const { return {x_, scratch_.block_max.data(), size_, top_, temperature, true}; }
    RowView plain() const { return {x_, scratch_.block_max.data(), size_, top_, 1.0f, false}; }

    uint64_t key(const RowView& view, int64_t token) const;

    // The limit of the first k >= 1 tokens up to `limit`.
    uint64_t limit_by_count(const RowView& view, int64_t k, uint64_t limit);
    // The limit of top-p among the tokens up to `limit`; p < 1; the view is scaled.
    uint64_t limit_by_mass(const RowView& view, double p, uint64_t limit);

    int64_t sum_masses(const RowView& view, uint64_t limit);
    int64_t count(const RowView& view, uint64_t limit);
    // The token up to `limit` that is drawn.
    int64_t race(const RowView& view, uint64_t limit, const Stream& stream);
    // The keys in [from, limit], in no order. They stay until the next call of this or of a limit.
    std::span<uint64_t> collect(const RowView& view, uint64_t from, uint64_t limit);

  private:
    template <class F>
    void each_part(const F& f);
    // Fills the first row of buckets by mass or by count and returns their sum.
    int64_t fill_buckets(const RowView& view, uint64_t limit, bool by_mass);

    const float* x_;
    int64_t size_;
    Scratch& scratch_;
    int64_t n_parts_;
    int64_t part_size_;
    float top_ = 0.0f;
};

// The limit of the tokens of at least so much mass.
uint64_t limit_of_least_mass(int64_t mass);

}  // namespace headrace
