// The memory that a tile of attention works in.
#pragma once

#include "kernels/attention_products.h"

namespace headrace {
namespace {

template <class T, class Form>
struct AttentionScratch {
    using P = Products<T>;
    // Of a head's weights over a segment, packed for the product with values.
    static constexpr int64_t weight_bytes = segment_tokens / P::values * P::x_bytes;
    static constexpr int parts = Form::template parts<T>;

    char* queries;                 // [units][heads of a block], block after block
    typename P::Row* query_rows;   // [heads][parts of a key]
    float* scores;                 // [heads of a block][tokens of a segment]
    float* scales;                 // [tokens of a segment] of values, for one row
    char* weights;                 // [heads of a block] weight_bytes
    T* values;                     // a segment's values, with unseen tokens zeroed or short rows padded
    float* segment;                // [heads] PartialHead and weighted values, partial_floats apart
    float* merged;                 // the same

    // Units of a key, all its parts.
    static int64_t key_units(const Attend& job) {
        int64_t units = 0;
        for (int part = 0; part < parts; ++part) units += part_units<T>(Form::template part<T>(job, part).dim);
        return units;
    }

    static int64_t bytes(const Attend& job) {
        AttentionScratch scratch;
        return scratch.lay_out(job, nullptr);
    }

    // Returns the bytes taken.
    int64_t lay_out(const Attend& job, char* memory) {
        const int64_t heads = attention_tile_rows * group_of(job);
        char* start = memory;
        const auto take = [&](int64_t bytes) {
            char* here = memory;
            memory += (bytes + 63) / 64 * 64;
            return here;
        };
        queries = take(key_units(job) * heads * P::x_bytes);
        query_rows = reinterpret_cast<typename P::Row*>(take(heads * parts * int64_t(sizeof(typename P::Row))));
        scores = reinterpret_cast<float*>(take(P::most_rows * segment_tokens * 4));
        scales = reinterpret_cast<float*>(take(P::scaled ? segment_tokens * 4 : 0));
        weights = take(P::most_rows * weight_bytes);
        values = reinterpret_cast<T*>(take(segment_tokens * padded_dim(job) * int64_t(sizeof(T))));
        segment = reinterpret_cast<float*>(take(heads * partial_floats(job) * 4));
        merged = reinterpret_cast<float*>(take(heads * partial_floats(job) * 4));
        return memory - start;
    }
};

}  // namespace
}  // namespace headrace
