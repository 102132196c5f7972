// Whether a product of bf16_kernels.h computes what the plain architecture's does.
#pragma once

#include "cpu/kernels/dense_kernels.h"

namespace trpo_fast {

// Multiplies small integers, whose sums are exact in any order, on a few dozen shapes, among them
// every kind of edge: bit for bit equal, and nothing else written.
bool pair_product_is_right(void (*product)(const PairProduct&));

}  // namespace trpo_fast
