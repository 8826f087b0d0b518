// Dtypes of activations, weights and cache.
#pragma once

namespace headrace {

enum class Dtype : int { f32 = 0, bf16 = 1 };

}  // namespace headrace
