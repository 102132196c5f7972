// Chooses the instruction set once, by CPUID; TRPO_FAST_ISA forces a lower one.
#pragma once

#include <string>
#include <vector>

#include "cpu/kernels/dense_kernels.h"

namespace trpo_fast {

// The kernels of this process. Throws std::runtime_error when TRPO_FAST_ISA names an instruction
// set that is unknown or that this CPU lacks.
const KernelTable& dense_kernels();

// The instruction sets built in that this CPU can run, best last.
std::vector<std::string> available_isas();

// Those of the tests' builds, on a model of a CPU: tests/native/emulation. Only named, never
// chosen.
std::vector<const KernelTable*> emulated_kernels();

}  // namespace trpo_fast
