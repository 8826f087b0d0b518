#include "core/isa.h"

#include <cstdlib>
#include <stdexcept>

namespace headrace {
namespace {

struct Level {
    const char* name;
    bool (*runs_here)();
    const KernelTable& (*table)();
};

#if defined(__x86_64__)

bool has_avx2() {
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c") &&
           __builtin_cpu_supports("bmi2");
}

bool has_avx512() {
    return has_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
           __builtin_cpu_supports("avx512vnni") && __builtin_cpu_supports("avx512bf16");
}

const Level levels[] = {
    {"avx2", has_avx2, avx2_kernels},
    {"avx512", has_avx512, avx512_kernels},
};

#elif defined(__aarch64__)

bool always() { return true; }

const Level levels[] = {{"neon", always, neon_kernels}};

#endif

std::string joined(const std::vector<std::string>& names) {
    std::string result;
    for (const auto& name : names) result += (result.empty() ? "" : ", ") + name;
    return result.empty() ? "none" : result;
}

const Level& choose() {
    const char* forced = std::getenv("HEADRACE_ISA");
    const Level* best = nullptr;
    for (const auto& candidate : levels) {
        if (forced && *forced ? std::string(forced) == candidate.name : candidate.runs_here()) best = &candidate;
    }
    if (forced && *forced && (!best || !best->runs_here())) {
        throw std::runtime_error(std::string("HEADRACE_ISA=") + forced + (best ? " cannot run on this CPU" : " is no level") +
                                 "; here it may be one of: " + joined(runnable_levels()));
    }
    if (!best) throw std::runtime_error("this CPU has none of the levels: " + joined(built_levels()));
    return *best;
}

const Level& chosen() {
    static const Level& result = choose();
    return result;
}

}  // namespace

std::vector<std::string> runnable_levels() {
    std::vector<std::string> names;
    for (const auto& candidate : levels)
        if (candidate.runs_here()) names.emplace_back(candidate.name);
    return names;
}

std::vector<std::string> built_levels() {
    std::vector<std::string> names;
    for (const auto& candidate : levels) names.emplace_back(candidate.name);
    return names;
}

const std::string& level() {
    static const std::string name = chosen().name;
    return name;
}

const KernelTable& kernels() { return chosen().table(); }

}  // namespace headrace
