// Each file of bindings adds its functions to the module.
#pragma once

#include <nanobind/nanobind.h>

#include <cstdint>

namespace headrace {

template <class T = void>
T* pointer(uintptr_t address) {
    return reinterpret_cast<T*>(address);
}

void bind_linear(nanobind::module_& m);
void bind_block_linear(nanobind::module_& m);
void bind_attention(nanobind::module_& m);
void bind_latent(nanobind::module_& m);
void bind_low_rank(nanobind::module_& m);
void bind_elementwise(nanobind::module_& m);
void bind_moe(nanobind::module_& m);
void bind_norm(nanobind::module_& m);
void bind_recurrent(nanobind::module_& m);
void bind_roofline(nanobind::module_& m);
void bind_sampler(nanobind::module_& m);
void bind_tape(nanobind::module_& m);

}  // namespace headrace
