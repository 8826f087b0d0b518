#include "ops/recurrent.h"

#include <stdexcept>

#include "core/isa.h"
#include "core/pool.h"

namespace headrace {

void StatePlan::fill(int64_t n_seqs, const int64_t* first_rows, const int64_t* counts, const int64_t* known,
                     const int64_t* starts, const int64_t* first_drafts, const int32_t* block_table, int64_t columns) {
    blocks_.assign(block_table, block_table + n_seqs * columns);
    sequences_.clear();
    n_rows_ = 0;
    has_drafts_ = false;
    for (int64_t i = 0; i < n_seqs; ++i) {
        if (known[i] < 0 || known[i] > counts[i] || starts[i] < 0 || starts[i] + known[i] > columns * block_tokens)
            throw std::invalid_argument("a row's state lies beyond the block table");
        sequences_.push_back({first_rows[i], counts[i], known[i], starts[i], first_drafts[i], blocks_.data() + i * columns});
        n_rows_ += counts[i];
        has_drafts_ = has_drafts_ || known[i] < counts[i];
    }
}

void run(const Recurrence& job, StatePlan* plan, Recurrent kind, Dtype dtype, int64_t n_rows) {
    if (job.y && n_rows != plan->n_rows_) throw std::invalid_argument("the plan is of another step");
    if (plan->has_drafts_ && !job.drafts) throw std::invalid_argument("draft rows, and nowhere to keep their inputs");
    const auto kernel = kernels().recurrent[int(kind)][int(dtype)];
    const int64_t each = recurrent_scratch(job), needed = Pool::instance().threads() * each;
    if (int64_t(plan->scratch_.size()) < needed) plan->scratch_.resize(size_t(needed));
    Pool::instance().each(int64_t(plan->sequences_.size()) * job.units, [&](int64_t chunk, int thread) {
        kernel(job, plan->sequences_[size_t(chunk / job.units)], chunk % job.units, plan->scratch_.data() + thread * each);
    });
}

}  // namespace headrace
