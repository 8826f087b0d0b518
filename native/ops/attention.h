// Paged attention over all rows of a step.
#pragma once

#include <cstdint>
#include <vector>

#include "core/dtype.h"
#include "kernels/attention_args.h"

namespace headrace {

struct AttentionKernels;

// One cache group's plan of a step: which rows go together, and where they find their blocks. Filled once a step and used
// by every layer of the group; filling it again keeps its address and its memory.
class AttentionPlan {
  public:
    // What fill copies.
    struct Step {
        const int64_t* query_starts;  // [n_seqs + 1]
        const int64_t* seq_lens;      // [n_seqs]
        int64_t n_seqs;
        const int32_t* block_table;  // [n_seqs, columns]
        int64_t columns;
        const int64_t* write_index;  // [n_writes]
        int64_t n_writes;
        int64_t window;           // keys a row sees, itself included; 0: no window
        int64_t chunk;            // rows see keys of their own chunk of so many alone; 0: no chunks
        int64_t n_kv_heads;       // how many threads may share a tile
        const KeyRange* ranges;   // [rows] what each row sees, whatever seq_lens, window and chunk say; or null
    };

    // Throws std::invalid_argument when a row lies outside its sequence, or sees keys outside its block table.
    void fill(const Step& step);

    // Where the step's keys go. Throws std::invalid_argument unless they are n_rows.
    KvPlaces places(int64_t n_rows) const;
    // What each row sees. Throws std::invalid_argument unless the step has n_rows.
    const KeyRange* seen(int64_t n_rows) const;
    // Blocks that hold a key that some row sees, sequence by sequence.
    const std::vector<int32_t>& read() const { return read_; }
    // Rows of the tallest tile.
    int64_t tallest() const;
    // Runs a job over all tiles, shared out among threads. Throws std::invalid_argument unless the step has n_rows.
    void attend(const AttentionKernels& table, const Attend& job, int64_t n_rows);

  private:
    // Segments [first, last) of a tile; the tile is whole if it is not among the split ones.
    struct Work {
        int32_t tile;
        int32_t first;
        int32_t last;
    };

    void set_ranges(const Step& step);
    void add_tile(const Step& step, int64_t seq, int64_t row, int64_t n_rows);
    void share_out(int64_t n_kv_heads);
    void find_read(const Step& step);
    char* memory(int64_t bytes);

    std::vector<AttentionTile> tiles_;
    std::vector<Work> work_;
    std::vector<int32_t> split_;  // tiles whose segments are shared out
    std::vector<int32_t> blocks_;
    std::vector<int32_t> read_;
    std::vector<int64_t> write_index_;
    std::vector<KeyRange> ranges_;
    int64_t partial_rows_ = 0;
    bool by_head_ = false;  // one head's work after another's, where tiles read the same keys
    std::vector<char> scratch_;
};

void run(const WriteKv& job, const AttentionPlan* plan, Dtype rows, Dtype cache, int64_t n_rows);
void run(const AddWhereSeen& job, const AttentionPlan* plan, Dtype dtype, int64_t n_rows);
void run(const Attend& job, AttentionPlan* plan, Dtype rows, Dtype cache, int64_t n_rows);

}  // namespace headrace
