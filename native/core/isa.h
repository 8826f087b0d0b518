// Which kernels this process runs: chosen once from what the CPU has, or forced by HEADRACE_ISA.
#pragma once

#include <string>
#include <vector>

#include "kernels/table.h"

namespace headrace {

// Levels compiled into this build that this machine can run, the best one last.
std::vector<std::string> runnable_levels();

// All levels compiled into this build, the best one last.
std::vector<std::string> built_levels();

// The level in use. The first call settles it; throws std::runtime_error when HEADRACE_ISA names a level that does not
// exist or that this machine cannot run, or when there is none.
const std::string& level();

// The kernels of that level.
const KernelTable& kernels();

}  // namespace headrace
