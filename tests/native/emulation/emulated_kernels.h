// Instruction sets that only the tests' builds know: csrc/cpu/kernels/amx_product.inl on a model of
// AMX.
#pragma once

#include "cpu/kernels/dense_kernels.h"

namespace trpo_fast {

const KernelTable& emulated_amx();
const KernelTable& emulated_amx_avx512();

}  // namespace trpo_fast
