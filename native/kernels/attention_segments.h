// A tile of attention, whole or in runs of its segments.
#pragma once

#include "kernels/attention.h"

namespace headrace {
namespace {

// All segments of a tile, one after another.
template <class Tile>
void attend_tile(const Attend& job, const AttentionTile& tile, int64_t kv_head, char* memory) {
    typename Tile::Scratch scratch;
    scratch.lay_out(job, memory);
    Tile work{job, tile, kv_head, scratch};
    work.pack_queries();
    for (int64_t head = 0; head < work.heads; ++head) clear(head_state(scratch.merged, job, head));
    for (int64_t i = 0; i < tile.n_segments; ++i) {
        work.attend_segment(tile.first_segment + i);
        merge(job, scratch.merged, scratch.segment, work.heads);
    }
    work.finish_rows(scratch.merged);
}

// Segments [first, last) of a tile into `partials`, [segments][heads of the tile] states, `stride` floats from a segment to
// the next.
template <class Tile>
void attend_segments(const Attend& job, const AttentionTile& tile, int64_t kv_head, int64_t first, int64_t last,
                     float* partials, int64_t stride, char* memory) {
    typename Tile::Scratch scratch;
    scratch.lay_out(job, memory);
    Tile work{job, tile, kv_head, scratch, tile.first_segment + first, tile.first_segment + last};
    work.pack_queries();
    for (int64_t segment = first; segment < last; ++segment) {
        work.scratch.segment = partials + segment * stride;
        work.attend_segment(tile.first_segment + segment);
    }
}

// The partials of all segments, `stride` floats apart, merged in order.
template <class Tile>
void merge_segments(const Attend& job, const AttentionTile& tile, int64_t kv_head, float* partials, int64_t stride) {
    Tile work{job, tile, kv_head, {}};
    for (int64_t segment = 1; segment < tile.n_segments; ++segment)
        merge(job, partials, partials + segment * stride, work.heads);
    work.finish_rows(partials);
}

}  // namespace
}  // namespace headrace
