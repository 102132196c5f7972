// A product of bf16_kernels.h against the same sums in float64.
#pragma once

#include "cpu/kernels/dense_kernels.h"

namespace trpo_fast {

enum class PairOutput : int { store, accumulate, rounded };

// One product as Bf16Fisher asks for it: left [M, K] right [K, N], K not yet in pairs.
struct PairCase {
  Index M, N, K, second_K;  // second_K: another pair of operands added, or 0
  int parts;                // of each operand: 2 gives three terms
  bool transposed;          // the left operand as a weight gradient's: pairs below each other
  bool bias;
  PairOutput output;
};

// The largest |found - exact| as a share of what rounding can make of it, so that more than 1 is
// wrong; infinity where something is not finite, or written where nothing belongs.
double pair_product_error(void (*product)(const PairProduct&), const PairCase& c);

}  // namespace trpo_fast
