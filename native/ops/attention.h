// Paged attention over all rows of a step.
#pragma once

#include <cstdint>
#include <vector>

#include "core/dtype.h"
#include "kernels/attention_args.h"

namespace headrace {

// One cache group's plan of a step: which rows go together, and where they find their blocks. Filled once a step and used
// by every layer of the group; filling it again keeps its address and its memory.
class AttentionPlan {
  public:
    // Copies what it is given. query_starts [n_seqs + 1], seq_lens [n_seqs], block_table [n_seqs, columns],
    // write_index [rows]; window 0: none. Throws std::invalid_argument when a row lies outside its sequence.
    void fill(const int64_t* query_starts, const int64_t* seq_lens, int64_t n_seqs, const int32_t* block_table,
              int64_t columns, const int64_t* write_index, int64_t window);

  private:
    friend void run(const WriteKv&, const AttentionPlan*, Dtype, Dtype, int64_t);
    friend void run(const Attend&, AttentionPlan*, Dtype, Dtype, int64_t);

    struct Work {
        int32_t tile;
        int32_t segment;  // -1: all of them
    };

    char* memory(int64_t bytes);

    std::vector<AttentionTile> tiles_;
    std::vector<Work> work_;
    std::vector<int32_t> split_;  // tiles whose segments are shared out
    std::vector<int32_t> blocks_;
    std::vector<int64_t> write_index_;
    int64_t window_ = 0;
    int64_t partial_rows_ = 0;
    std::vector<char> scratch_;
};

void run(const WriteKv& job, const AttentionPlan* plan, Dtype rows, Dtype cache, int64_t n_rows);
void run(const Attend& job, AttentionPlan* plan, Dtype rows, Dtype cache, int64_t n_rows);

}  // namespace headrace
