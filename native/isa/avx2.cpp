#define HEADRACE_TABLE avx2_kernels
#include "simd/avx2.h"
#include "kernels/all.h"
