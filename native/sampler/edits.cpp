#include "sampler/edits.h"

#include <algorithm>
#include <limits>

namespace headrace {
namespace {

constexpr float forbidden = -std::numeric_limits<float>::infinity();

const uint32_t* mask_of(const Masks& masks, int64_t r) {
    return masks.index && masks.index[r] >= 0 ? masks.words + masks.index[r] * masks.width : nullptr;
}

}  // namespace

int64_t most_edits(const SampleJob& job, int64_t n_rows) {
    int64_t most = 0;
    for (int64_t r = 0; r < n_rows; ++r) {
        int64_t n = 0;
        for (const Edits* edits : {&job.bias, &job.penalties, &job.end_bans, &job.word_bans, &job.ngram_bans})
            if (edits->starts) n += edits->starts[r + 1] - edits->starts[r];
        most = std::max(most, n);
    }
    return most;
}

EditedRow::EditedRow(const SampleJob& job, int64_t vocab_size, const SlotOptions& options, int64_t r, Scratch& scratch)
    : job_(job),
      r_(r),
      mask_(mask_of(job.masks, r)),
      x_(job.logits + r * job.stride),
      replaced_(scratch.replaced.data()) {
    if (mask_) {
        std::copy_n(x_, vocab_size, scratch.masked.data());
        x_ = scratch.masked.data();
    }
    const float* bias = static_cast<const float*>(job.bias.values);
    apply(job.bias, [&](float x, int64_t i) { return x + bias[i]; });
    apply_penalties(options);
    const auto ban = [](float, int64_t) { return forbidden; };
    apply(job.end_bans, ban);
    apply(job.word_bans, ban);
    apply(job.ngram_bans, ban);
    if (mask_) apply_mask(vocab_size, mask_);
}

void EditedRow::apply_penalties(const SlotOptions& options) {
    const int64_t slot = job_.slots[r_];
    const int64_t* occurrences = static_cast<const int64_t*>(job_.penalties.values);
    const float repetition = options.repetition[slot], presence = options.presence[slot];
    const float frequency = options.frequency[slot];
    apply(job_.penalties, [&](float x, int64_t i) {
        const float count = float(occurrences[i]);
        x = x > 0.0f ? x / repetition : x * repetition;
        if (count > 0.0f) x = x - presence;
        return x - frequency * count;
    });
}

// Masks are mostly words of one kind: all tokens of a string go on, or nearly none may follow.
void EditedRow::apply_mask(int64_t vocab_size, const uint32_t* words) {
    for (int64_t first = 0; first < vocab_size; first += 32) {
        const uint32_t word = words[first / 32];
        if (word == ~uint32_t(0)) continue;
        const int64_t n = std::min<int64_t>(32, vocab_size - first);
        for (int64_t i = 0; i < n; ++i)
            if (!(word >> i & 1)) x_[first + i] = forbidden;
    }
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

// Backwards, as a token may have changed more than once. A copy is left as it is.
void EditedRow::restore() {
    if (mask_) return;
    for (const Edits* edits : {&job_.ngram_bans, &job_.word_bans, &job_.end_bans, &job_.penalties, &job_.bias}) {
        if (!edits->starts) continue;
        for (int64_t i = edits->starts[r_ + 1]; i-- > edits->starts[r_];) x_[edits->ids[i]] = replaced_[--n_replaced_];
    }
}

}  // namespace headrace
