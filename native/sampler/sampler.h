// The sampler: from rows of logits to tokens and logprobs, as docs/sampling.md defines them.
#pragma once

#include <cstdint>
#include <vector>

#include "sampler/scratch.h"

namespace headrace {

// Bits of SlotOptions::flags that rows are told apart by; those of sampling/params.py.
enum SampleFlag : int64_t { sample_draw = 32, sample_raw_logprobs = 256, sample_processed_logprobs = 512 };

// What the sequence in each slot asked for: the arrays of sampling/params.py, [n_slots].
struct SlotOptions {
    const int64_t* flags;
    const float* temperature;
    const int64_t* top_k;
    const double* min_p;
    const int64_t* seed_low;
    const int64_t* seed_high;
    const int64_t* output_index;
    const float* repetition;
    const float* presence;
    const float* frequency;
    const int64_t* n_logprobs;
};

// Tokens of rows whose logits change: row r has ids[starts[r] .. starts[r + 1]), and as many values.
struct Edits {
    const int64_t* starts = nullptr;  // none: no row has any
    const int64_t* ids = nullptr;
    const void* values = nullptr;     // bias: f32; penalties: int64 occurrences in the output; bans: none
};

// The tokens that rows may give. Row r has the mask index[r]; -1: none. Bit t % 32 of word t / 32: token t is allowed.
struct Masks {
    const int64_t* index = nullptr;  // none: no row has any
    const uint32_t* words = nullptr;
    int64_t width = 0;  // words of a mask
};

// Logprobs of rows: of one token each, and of the most likely ones, `width` places for each row.
struct LogprobsOut {
    int64_t width;
    double* logprobs;      // [R]
    int64_t* ranks;        // [R]
    int64_t* counts;       // [R] of the most likely ones that there are
    int64_t* top_ids;      // [R, width]
    double* top_logprobs;  // [R, width]
};

struct SampleJob {
    float* logits;  // [R, vocab_size]; edits are taken back before the job ends
    int64_t stride;
    const float* model_logits;  // what raw logprobs are made of: `logits`, unless somebody has changed a copy
    int64_t model_stride;
    const int64_t* slots;
    const int64_t* positions;
    const double* top_p;                                     // [R]
    Edits bias, penalties, end_bans, word_bans, ngram_bans;  // in the order they are applied in
    Masks masks;                                             // applied last
    int64_t* tokens;                                         // [R]; -1 in rows that failed
    float* tops;                                 // [R] the largest logit; NaN, +inf or -inf where the row failed
    LogprobsOut logprobs;
};

struct PromptJob {
    const float* logits;
    int64_t stride;
    const int64_t* next_tokens;
    int64_t n_top;
    float* tops;  // as in SampleJob
    LogprobsOut logprobs;
};

// One job at a time.
class NativeSampler {
  public:
    NativeSampler(int64_t vocab_size, const SlotOptions& options) : vocab_size_(vocab_size), options_(options) {}

    void sample(const SampleJob& job, int64_t n_rows);
    void prompt_logprobs(const PromptJob& job, int64_t n_rows);

  private:
    // Calls f(row, scratch, n_parts) for every row: rows side by side when there are enough, else one after another and
    // each in parts. Neither changes a result.
    template <class F>
    void each_row(int64_t n_rows, int64_t most_edits, bool has_masks, const F& f);

    void sample_row(const SampleJob& job, int64_t r, Scratch& scratch, int64_t n_parts) const;

    int64_t vocab_size_;
    SlotOptions options_;
    std::vector<Scratch> scratch_;
};

}  // namespace headrace
