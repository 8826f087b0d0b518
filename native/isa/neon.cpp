#define HEADRACE_TABLE neon_kernels
#include "simd/neon.h"
#include "kernels/all.h"
