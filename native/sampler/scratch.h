// Memory that one thread samples a row in, grown before the job starts.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "kernels/sampler_args.h"

namespace headrace {

struct Scratch {
    std::vector<float> block_max;   // [blocks]
    std::vector<float> maxima;      // [blocks], to be reordered
    std::vector<int64_t> buckets;   // [parts, n_buckets]
    std::vector<uint64_t> keys;     // [size]
    std::vector<float> replaced;    // what edits have overwritten
    std::vector<float> masked;      // [size], a row with a mask

    void reserve(int64_t size, int64_t n_parts, int64_t n_edits, bool has_masks) {
        const std::size_t blocks = std::size_t((size + sampler_block - 1) / sampler_block);
        if (block_max.size() < blocks) block_max.resize(blocks), maxima.resize(blocks);
        if (keys.size() < std::size_t(size)) keys.resize(std::size_t(size));
        if (buckets.size() < std::size_t(n_parts * n_buckets)) buckets.resize(std::size_t(n_parts * n_buckets));
        if (has_masks && masked.size() < std::size_t(size)) masked.resize(std::size_t(size));
        if (replaced.size() < std::size_t(n_edits)) replaced.resize(std::size_t(n_edits));
    }
};

}  // namespace headrace
