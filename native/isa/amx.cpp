#define HEADRACE_TABLE amx_kernels
#include "simd/avx512.h"
#include "kernels/all.h"
