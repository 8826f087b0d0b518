// Included once by each ISA's translation unit, after its simd header. Everything here has internal linkage: a function
// compiled for one level must never be the one that another level's code is linked to. For the same reason kernels use
// nothing of the standard library that is not a plain C function.
#pragma once

#include "kernels/attention_add.h"
#include "kernels/attention_segments.h"
#include "kernels/attention_write.h"
#include "kernels/block_linear.h"
#include "kernels/elementwise.h"
#include "kernels/latent.h"
#include "kernels/linear.h"
#include "kernels/low_rank.h"
#include "kernels/moe.h"
#include "kernels/norm.h"
#include "kernels/recurrent.h"
#include "kernels/roofline.h"
#include "kernels/round_blocks.h"
#include "kernels/sampler.h"
#include "kernels/table.h"

namespace headrace {

template <class Q, class T>
constexpr AttentionKernels attention_kernels() {
    using Tile = TileAttention<Q, T, ByKvHead>;
    return {Tile::Scratch::bytes, write_kv<Q, T>, attend_tile<Tile>, attend_segments<Tile>, merge_segments<Tile>};
}

template <class Q, class T>
constexpr LatentKernels latent_kernels() {
    using Tile = TileAttention<Q, T, OverLatents>;
    return {{Tile::Scratch::bytes, nullptr, attend_tile<Tile>, attend_segments<Tile>, merge_segments<Tile>},
            write_latent<Q, T>};
}

const KernelTable& HEADRACE_TABLE() {
    static constexpr KernelTable table = {
        .attention = {{attention_kernels<float, float>(), attention_kernels<float, bf16>(), attention_kernels<float, q8>(),
                       attention_kernels<float, e4m3>()},
                      {attention_kernels<bf16, float>(), attention_kernels<bf16, bf16>(), attention_kernels<bf16, q8>(),
                       attention_kernels<bf16, e4m3>()}},
        .latent = {{latent_kernels<float, float>(), latent_kernels<float, bf16>(), latent_kernels<float, q8>(),
                    latent_kernels<float, e4m3>()},
                   {latent_kernels<bf16, float>(), latent_kernels<bf16, bf16>(), latent_kernels<bf16, q8>(),
                    latent_kernels<bf16, e4m3>()}},
        .read_all = read_all,
        .multiply_all_f32 = multiply_all<float>,
        .multiply_all_bf16 = multiply_all<bf16>,
        .multiply_all_bytes = multiply_all_bytes,
        .linear_f32 = {tile_rows, Dot<float>::x_bytes, pack_x<float>, linear<float>},
        .linear_bf16 = {tile_rows, Dot<bf16>::x_bytes, pack_x<bf16>, linear<bf16>},
        .low_rank_add_f32 = low_rank_add<float>,
        .low_rank_add_bf16 = low_rank_add<bf16>,
        .block_linear_f32 = {block_tile_rows, pack_block_x<float>, block_linear<float>},
        .block_linear_bf16 = {block_tile_rows, pack_block_x<bf16>, block_linear<bf16>},
        .elementwise = {{elementwise<Elementwise::silu_mul, float>, elementwise<Elementwise::silu_mul, bf16>},
                        {elementwise<Elementwise::gelu_tanh_mul, float>, elementwise<Elementwise::gelu_tanh_mul, bf16>},
                        {elementwise<Elementwise::relu_squared, float>, elementwise<Elementwise::relu_squared, bf16>},
                        {elementwise<Elementwise::soft_cap, float>, elementwise<Elementwise::soft_cap, bf16>},
                        {elementwise<Elementwise::add, float>, elementwise<Elementwise::add, bf16>},
                        {elementwise<Elementwise::scale, float>, elementwise<Elementwise::scale, bf16>},
                        {elementwise<Elementwise::clamped_glu, float>, elementwise<Elementwise::clamped_glu, bf16>},
                        {elementwise<Elementwise::gelu, float>, elementwise<Elementwise::gelu, bf16>},
                        {elementwise<Elementwise::sigmoid_mul, float>, elementwise<Elementwise::sigmoid_mul, bf16>},
                        {elementwise<Elementwise::row_sigmoid_mul, float>, elementwise<Elementwise::row_sigmoid_mul, bf16>},
                        {elementwise<Elementwise::add_scaled, float>, elementwise<Elementwise::add_scaled, bf16>}},
        .position_scale_f32 = position_scale<float>,
        .position_scale_bf16 = position_scale<bf16>,
        .add_where_seen_f32 = add_where_seen<float>,
        .add_where_seen_bf16 = add_where_seen<bf16>,
        .moe_f32 = {gather_slots<float>, combine_slots<float>},
        .moe_bf16 = {gather_slots<bf16>, combine_slots<bf16>},
        .rope_f32 = rope<float>,
        .rope_bf16 = rope<bf16>,
        .layer_norm_f32 = layer_norm<float>,
        .layer_norm_bf16 = layer_norm<bf16>,
        .rms_norm_f32 = rms_norm<float>,
        .rms_norm_bf16 = rms_norm<bf16>,
        .round_blocks_f32 = round_blocks<float>,
        .round_blocks_bf16 = round_blocks<bf16>,
        .recurrent = {{recur<Recurrent::gated_delta, float>, recur<Recurrent::gated_delta, bf16>},
                      {recur<Recurrent::mamba2, float>, recur<Recurrent::mamba2, bf16>}},
        .sampler_largest = sampler_largest,
        .sampler_sum_masses = sampler_sum_masses,
        .sampler_fill_by_mass = sampler_fill_buckets<true>,
        .sampler_fill_by_count = sampler_fill_buckets<false>,
        .sampler_collect = sampler_collect,
        .sampler_count = sampler_count,
        .sampler_race = sampler_race,
    };
    return table;
}

}  // namespace headrace
