// Dtypes of activations, weights and cache.
#pragma once

namespace headrace {

// The last two are of a cache: numbers of one byte with a scale for each token and head.
enum class Dtype : int { f32 = 0, bf16 = 1, q8 = 2, e4m3 = 3 };

constexpr int row_dtypes = 2;
constexpr int cache_dtypes = 4;

}  // namespace headrace
