#pragma once

#include "cpu/kernels/slabs.h"

namespace trpo_fast {

// A layer's gradient in a chunk's partial sums: weights [major][minor slabs], then biases [out
// padded].
struct GradientBlock {
  bool out_major;  // rows are outputs and columns inputs; else the other way round
  Index major;
  Slabs minor;
  Index weight, bias;  // offsets in the partial sums
};

}  // namespace trpo_fast
