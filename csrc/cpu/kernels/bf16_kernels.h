// Products of bfloat16 operands with float sums, compiled once per instruction set like the rest of
// dense_kernels.
//
// Operands are read as pairs: two neighbours along K in one word, the earlier one in the low half,
// as the vdpbf16ps instruction takes them. So the same strides describe an operand as in
// dense_kernels.h, with K counted in pairs. Where the instruction is missing, two float FMAs on the
// widened halves do the same.
#pragma once

#include "common/layers.h"
#include "cpu/kernels/slabs.h"

namespace trpo_fast {

using Bf16 = std::uint16_t;
using Pair = std::uint32_t;

template <class T>
struct Term;

// A number as the sum of up to two bfloat16: its rounding, and the rounding of what that leaves.
constexpr int kMaxParts = 2;
// hi hi + hi lo + lo hi, of two sums that end at one result
constexpr int kMaxPairTerms = 6;

// A panel's rows, rounded, in slabs like Panel's.
struct SplitRows {
  Bf16* part[kMaxParts] = {nullptr, nullptr};  // those there are
  Index stride = 0, slab_stride = 0;
};

// C[M, N] (+)= bias + sum of terms; or that times the slope, rounded.
struct PairProduct {
  Index M;
  Slabs N;
  const Term<Pair>* terms;
  int term_count = 0;
  const float* bias = nullptr;  // [N padded] or null
  float* C = nullptr;           // null: the result goes to `rounded`
  Index c_stride = 0, c_slab_stride = 0;
  bool accumulate = false;
  SplitRows rounded = {}, slope = {};
  // What the next panel will read, brought into L2 while this product computes; or null.
  const Bf16* ahead = nullptr;
  Index ahead_count = 0;
};

enum class Slope : int { given, of_tanh, of_relu, one };

struct Bf16Kernels {
  bool instruction;  // vdpbf16ps, not its emulation
  void (*product)(const PairProduct& p);
  // Rounds count values (a multiple of kPadding); lo null: hi alone.
  void (*round)(const float* from, Index count, Bf16* hi, Bf16* lo);
  // Rounds phi'(z), read as it is or made from phi(z).
  void (*round_slope)(Slope how, const float* from, Index count, Bf16* hi, Bf16* lo);
  // Rows 2 k and 2 k + 1 as pairs; after an odd number of rows comes one of zeros.
  void (*pair_rows)(const Bf16* rows, Index count, Index width, Pair* pairs);
  // sums[0 .. width) += both halves of the columns of rows of pairs.
  void (*column_sums)(const Pair* pairs, Index count, Index width, float* sums);
};

}  // namespace trpo_fast
