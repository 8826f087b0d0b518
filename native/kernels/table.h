// The kernels of one ISA level. A kernel computes a range of a job on the thread it is called on; native/ops cuts jobs
// into ranges and hands them to the pool.
#pragma once

#include "kernels/attention_args.h"
#include "kernels/block_linear_args.h"
#include "kernels/elementwise_args.h"
#include "kernels/latent_args.h"
#include "kernels/linear_args.h"
#include "kernels/low_rank_args.h"
#include "kernels/moe_args.h"
#include "kernels/norm_args.h"
#include "kernels/recurrent_args.h"
#include "kernels/round_blocks_args.h"
#include "kernels/sampler_args.h"

namespace headrace {

struct LinearKernels {
    int64_t tile_rows;      // rows of a block at most
    int64_t x_unit_bytes;   // of a packed unit of x
    void (*pack_x)(const Linear&, int64_t first_row, int64_t last_row, void* packed);
    void (*run)(const Linear&, const void* x_packed, const RowBlocks& blocks, int64_t first_block, int64_t last_block,
                int64_t first_panel, int64_t last_panel, Later* later);
};

// As LinearKernels, for a weight in blocks.
struct BlockLinearKernels {
    int64_t tile_rows;
    void (*pack_x)(const BlockLinear&, int64_t first_row, int64_t last_row, void* packed);
    void (*run)(const BlockLinear&, const void* x_packed, const RowBlocks& blocks, int64_t first_block, int64_t last_block,
                int64_t first_panel, int64_t last_panel, Later* later);
};

struct AttentionKernels {
    int64_t (*scratch_bytes)(const Attend&);
    void (*write_kv)(const WriteKv&, const KvPlaces&, int64_t first_row, int64_t last_row);
    void (*tile)(const Attend&, const AttentionTile&, int64_t kv_head, char* scratch);
    void (*segments)(const Attend&, const AttentionTile&, int64_t kv_head, int64_t first, int64_t last, float* partials,
                     int64_t stride, char* scratch);
    void (*merge)(const Attend&, const AttentionTile&, int64_t kv_head, float* partials, int64_t stride);
};

struct LatentKernels {
    AttentionKernels attend;  // jobs are LatentAttend; nothing is written by it
    void (*write)(const WriteLatent&, const KvPlaces&, int64_t first_row, int64_t last_row);
};

struct MoeKernels {
    void (*gather)(const Experts&, const int32_t* order, int64_t first, int64_t last, void* to);
    void (*combine)(const Experts&, const float* outputs, const int32_t* places, int64_t row, int64_t first, int64_t last);
};

struct KernelTable {
    AttentionKernels attention[row_dtypes][cache_dtypes];  // by the dtypes of rows and of the cache
    LatentKernels latent[row_dtypes][cache_dtypes];
    float (*read_all)(const void* memory, int64_t bytes);
    int64_t (*multiply_all_f32)(int64_t turns, float guard);
    int64_t (*multiply_all_bf16)(int64_t turns, float guard);
    int64_t (*multiply_all_bytes)(int64_t turns, float guard);
    LinearKernels linear_f32;
    LinearKernels linear_bf16;
    void (*low_rank_add_f32)(const LowRankAdd&, const void* u_packed, const RowBlocks& blocks, int64_t first_block,
                             int64_t last_block, int64_t first_panel, int64_t last_panel);
    void (*low_rank_add_bf16)(const LowRankAdd&, const void* u_packed, const RowBlocks& blocks, int64_t first_block,
                              int64_t last_block, int64_t first_panel, int64_t last_panel);
    BlockLinearKernels block_linear_f32;
    BlockLinearKernels block_linear_bf16;
    void (*elementwise[int(Elementwise::count)][2])(const ElementwiseRows&, int64_t first_row, int64_t last_row);
    void (*position_scale_f32)(const PositionScale&, int64_t first_row, int64_t last_row);
    void (*position_scale_bf16)(const PositionScale&, int64_t first_row, int64_t last_row);
    void (*add_where_seen_f32)(const AddWhereSeen&, const KeyRange* seen, int64_t first_row, int64_t last_row);
    void (*add_where_seen_bf16)(const AddWhereSeen&, const KeyRange* seen, int64_t first_row, int64_t last_row);
    MoeKernels moe_f32;
    MoeKernels moe_bf16;
    void (*rope_f32)(const Rope&, int64_t first_row, int64_t last_row);
    void (*rope_bf16)(const Rope&, int64_t first_row, int64_t last_row);
    void (*layer_norm_f32)(const LayerNorm&, int64_t first_row, int64_t last_row);
    void (*layer_norm_bf16)(const LayerNorm&, int64_t first_row, int64_t last_row);
    void (*rms_norm_f32)(const RmsNorm&, int64_t first_row, int64_t last_row);
    void (*rms_norm_bf16)(const RmsNorm&, int64_t first_row, int64_t last_row);

    int64_t (*round_blocks_f32)(const RoundBlocks&, int64_t row);
    int64_t (*round_blocks_bf16)(const RoundBlocks&, int64_t row);

    void (*recurrent[int(Recurrent::count)][2])(const Recurrence&, const StateRows&, int64_t unit, float* scratch);

    // Tokens first .. last - 1 of a row; see kernels/sampler.h.
    Largest (*sampler_largest)(const float* x, int64_t first, int64_t last, float* block_max);
    int64_t (*sampler_sum_masses)(const RowView&, int64_t first, int64_t last, uint64_t limit);
    void (*sampler_fill_by_mass)(const RowView&, int64_t first, int64_t last, uint64_t limit, int64_t* buckets);
    void (*sampler_fill_by_count)(const RowView&, int64_t first, int64_t last, uint64_t limit, int64_t* buckets);
    int64_t (*sampler_collect)(const RowView&, int64_t first, int64_t last, uint64_t from, uint64_t limit, uint64_t* keys);
    int64_t (*sampler_count)(const RowView&, int64_t first, int64_t last, uint64_t limit);
    Winner (*sampler_race)(const RowView&, int64_t first, int64_t last, uint64_t limit, const Stream&, Winner best);
};

const KernelTable& avx2_kernels();
const KernelTable& avx512_kernels();
const KernelTable& neon_kernels();

}  // namespace headrace
