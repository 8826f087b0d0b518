// Bias, penalties, bans and the mask of one row: applied in place and taken back, or to a copy where there is a mask.
#pragma once

#include <cstdint>

#include "sampler/sampler.h"

namespace headrace {

// How many edits the row with the most of them has.
int64_t most_edits(const SampleJob& job, int64_t n_rows);

// A few hundred values of a row change, so it is cheaper to put them back than to copy the row.
class EditedRow {
  public:
    EditedRow(const SampleJob& job, int64_t vocab_size, const SlotOptions& options, int64_t r, Scratch& scratch);
    const float* logits() const { return x_; }
    void restore();

  private:
    void apply_penalties(const SlotOptions& options);
    void apply_mask(int64_t vocab_size, const uint32_t* words);
    // Calls f(value, index) for the tokens of the row; f returns the new value.
    template <class F>
    void apply(const Edits& edits, const F& f);
    const SampleJob& job_;
    int64_t r_;
    const uint32_t* mask_;
    float* x_;
    float* replaced_;
    int64_t n_replaced_ = 0;
};

}  // namespace headrace
