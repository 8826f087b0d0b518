// Recurrent layers over all rows of a step.
#pragma once

#include <cstdint>
#include <vector>

#include "core/dtype.h"
#include "kernels/recurrent_args.h"

namespace headrace {

// Which rows of a step belong to which sequence, and where its states lie. Filled once a step and used by every layer of
// the group; filling it again keeps its address.
class StatePlan {
  public:
    // Copies what it is given: [n_seqs] each, block_table [n_seqs, columns]. Throws std::invalid_argument when a row's
    // state would lie beyond the table.
    void fill(int64_t n_seqs, const int64_t* first_rows, const int64_t* counts, const int64_t* known, const int64_t* starts,
              const int64_t* first_drafts, const int32_t* block_table, int64_t columns);

  private:
    friend void run(const Recurrence&, StatePlan*, Recurrent, Dtype, int64_t);

    std::vector<StateRows> sequences_;
    std::vector<int32_t> blocks_;
    std::vector<float> scratch_;
    int64_t n_rows_ = 0;
    bool has_drafts_ = false;
};

void run(const Recurrence& job, StatePlan* plan, Recurrent kind, Dtype dtype, int64_t n_rows);

}  // namespace headrace
