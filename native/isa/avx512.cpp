#define HEADRACE_TABLE avx512_kernels
#include "simd/avx512.h"
#include "kernels/all.h"
