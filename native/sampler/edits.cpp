#include "sampler/edits.h"

#include <algorithm>
#include <limits>

namespace headrace {

int64_t most_edits(const SampleJob& job, int64_t n_rows) {
    int64_t most = 0;
    for (int64_t r = 0; r < n_rows; ++r) {
        int64_t n = 0;
        for (const Edits* edits : {&job.bias, &job.penalties, &job.end_bans, &job.word_bans})
            if (edits->starts) n += edits->starts[r + 1] - edits->starts[r];
        most = std::max(most, n);
    }
    return most;
}

EditedRow::EditedRow(const SampleJob& job, const SlotOptions& options, int64_t r, Scratch& scratch)
    : job_(job), r_(r), x_(job.logits + r * job.stride), replaced_(scratch.replaced.data()) {
    const int64_t slot = job.slots[r];
    const float* bias = static_cast<const float*>(job.bias.values);
    apply(job.bias, [&](float x, int64_t i) { return x + bias[i]; });

    const int64_t* occurrences = static_cast<const int64_t*>(job.penalties.values);
    const float repetition = options.repetition[slot], presence = options.presence[slot];
    const float frequency = options.frequency[slot];
    apply(job.penalties, [&](float x, int64_t i) {
        const float count = float(occurrences[i]);
        x = x > 0.0f ? x / repetition : x * repetition;
        if (count > 0.0f) x = x - presence;
        return x - frequency * count;
    });

    const auto ban = [](float, int64_t) { return -std::numeric_limits<float>::infinity(); };
    apply(job.end_bans, ban);
    apply(job.word_bans, ban);
}

template <class F>
void EditedRow::apply(const Edits& edits, const F& f) {
    if (!edits.starts) return;
    for (int64_t i = edits.starts[r_]; i < edits.starts[r_ + 1]; ++i) {
        float& x = x_[edits.ids[i]];
        replaced_[n_replaced_++] = x;
        x = f(x, i);
    }
}

// Backwards, as a token may have changed more than once.
void EditedRow::restore() {
    for (const Edits* edits : {&job_.word_bans, &job_.end_bans, &job_.penalties, &job_.bias}) {
        if (!edits->starts) continue;
        for (int64_t i = edits->starts[r_ + 1]; i-- > edits->starts[r_];) x_[edits->ids[i]] = replaced_[--n_replaced_];
    }
}

}  // namespace headrace
