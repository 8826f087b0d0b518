// The machine's limits, for benchmarks: all threads of the pool read, or multiply, at once.
#include <algorithm>
#include <atomic>
#include <stdexcept>

#include "bindings/bind.h"
#include "core/dtype.h"
#include "core/isa.h"
#include "core/pool.h"

namespace nb = nanobind;

namespace headrace {
namespace {

constexpr int64_t chunk_bytes = 64 << 10;

// Reads `bytes` bytes, a multiple of 512.
float read_all(uintptr_t memory, int64_t bytes) {
    if (bytes % 512) throw std::invalid_argument("bytes must be a multiple of 512");
    std::atomic<float> last{0.0f};
    Pool::instance().each((bytes + chunk_bytes - 1) / chunk_bytes, [&](int64_t chunk, int) {
        const int64_t start = chunk * chunk_bytes;
        last.store(kernels().read_all(pointer<const char>(memory) + start, std::min(chunk_bytes, bytes - start)),
                   std::memory_order_relaxed);
    });
    return last.load();
}

// Runs on every thread; returns the number of products.
int64_t multiply_everywhere(int64_t (*run)(int64_t, float), int64_t turns) {
    std::atomic<int64_t> products{0};
    Pool::instance().each(64 * Pool::instance().threads(), [&](int64_t, int) { products += run(turns / 64, 0.5f); });
    return products.load();
}

int64_t multiply_all(int dtype, int64_t turns) {
    return multiply_everywhere(Dtype(dtype) == Dtype::f32 ? kernels().multiply_all_f32 : kernels().multiply_all_bf16, turns);
}

int64_t multiply_all_bytes(int64_t turns) { return multiply_everywhere(kernels().multiply_all_bytes, turns); }

}  // namespace

void bind_roofline(nb::module_& m) {
    m.def("read_all", &read_all, nb::call_guard<nb::gil_scoped_release>());
    m.def("multiply_all", &multiply_all, nb::call_guard<nb::gil_scoped_release>());
    m.def("multiply_all_bytes", &multiply_all_bytes, nb::call_guard<nb::gil_scoped_release>());
}

}  // namespace headrace
