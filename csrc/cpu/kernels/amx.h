// Whether this process may use the tiles of AMX.
#pragma once

#include <string>

#include "cpu/kernels/dense_kernels.h"

namespace trpo_fast {

// Those of avx512_bf16, but for the one product that tiles compute.
const KernelTable& dense_kernels_amx_bf16();
void amx_bf16_product(const PairProduct& p);

// Empty where it may, else why not, in words. Asks Linux for the permission and multiplies a few
// matrices to see that the answers are right: once, at the first call. Neither happens where
// TRPO_FAST_ISA names another instruction set.
const std::string& amx_refusal();

// Whether the CPU has the instructions, whatever the system and the build make of it.
bool cpu_has_amx();

}  // namespace trpo_fast
