// The arithmetic that is compiled once per instruction set, behind one table of functions.
//
// One micro-kernel serves the three products of a layer: a W (forward), delta W' (backward) and a'
// delta (weight gradient). They differ only in the strides of the left operand.
#pragma once

#include "common/layers.h"
#include "cpu/kernels/bf16_kernels.h"
#include "cpu/kernels/slabs.h"

namespace trpo_fast {

// The left operand of a product: element (m, k), m and k each split into blocks (the slabs above).
template <class T>
struct LeftOperand {
  const T* data;
  Index m_stride, m_block,
      m_block_stride;  // (m, .) at (m / m_block) * m_block_stride + (m % m_block) * m_stride
  Index k_stride, k_block, k_block_stride;
};

// The right operand: rows k of one slab of columns at a time.
template <class T>
struct RightOperand {
  const T* data;
  Index k_stride;     // between rows k
  Index slab_stride;  // between slabs of columns
};

template <class T>
struct Term {
  LeftOperand<T> left;    // [M, K]
  RightOperand<T> right;  // [K, N]
  Index K;
};

// What happens to a finished element c of the result.
enum class Finish : int {
  store,        // C = c
  accumulate,   // C += c
  times_slope,  // C = c * S                (S: phi'(z), stored)
  times_tanh,   // C = c * (1 - S^2)        (S: a = tanh(z))
  times_step,   // C = S > 0 ? c : 0        (S: a = relu(z))
};

// C[M, N] = finish(bias + sum of one or two terms)
template <class T>
struct Product {
  Index M;
  Slabs N;
  Term<T> terms[2] = {};
  int term_count = 0;
  const T* bias = nullptr;  // [N padded] or null
  T* C = nullptr;           // slabs of rows of c_stride elements
  Index c_stride = 0, c_slab_stride = 0;
  Finish finish = Finish::store;
  const T* S = nullptr;  // laid out as C
  // What the next panel will read, brought into L2 while this product computes; or null.
  const T* ahead = nullptr;
  Index ahead_count = 0;
};

// One Adam step (Kingma & Ba 2015, algorithm 1), its bias corrections folded in as in torch's.
template <class T>
struct AdamStep {
  T first_decay;          // 1 - beta1
  T beta2, second_decay;  // second_decay = 1 - beta2
  T step_size;            // lr / (1 - beta1^t)
  T root_correction;      // sqrt(1 - beta2^t)
  T eps;
};

template <class T>
struct Kernels {
  void (*product)(const Product<T>& p);
  // z -> a in place and, where slope is not null, phi'(z); count is a multiple of kPadding.
  void (*activate)(Activation activation, T parameter, T* z, T* slope, Index count);
  // sums[0 .. width) += the columns of rows of width elements; width is a multiple of kPadding.
  void (*column_sums)(const T* rows, Index count, Index width, T* sums);
  // Vectors of any length; sums in double, in an order that the length alone fixes.
  double (*dot)(const T* x, const T* y, Index n);
  // y += alpha x
  void (*add_scaled)(T alpha, const T* x, T* y, Index n);
  // p = z + beta p
  void (*direction)(T beta, const T* z, T* p, Index n);
  // The gradient g moves the moments m and v and the parameters p; count is a multiple of kPadding.
  void (*adam)(const AdamStep<T>& step, const T* g, T* m, T* v, T* p, Index count);
  // x . x in T's own range: not finite where it is beyond it.
  T (*squares)(const T* x, Index count);
  // sums[r] += row r . x
  void (*row_dots)(const T* rows, Index count, Index stride, const T* x, Index features, T* sums);
  // to[b, a] = from[a, b] for kPadding rows and columns
  void (*transpose)(const T* from, Index from_stride, T* to, Index to_stride);
};

struct KernelTable {
  const char* isa;
  Kernels<float> f32;
  Kernels<double> f64;
  Bf16Kernels bf16;

  template <class T>
  const Kernels<T>& get() const;
};
template <>
inline const Kernels<float>& KernelTable::get<float>() const {
  return f32;
}
template <>
inline const Kernels<double>& KernelTable::get<double>() const {
  return f64;
}

const KernelTable& dense_kernels_baseline();
const KernelTable& dense_kernels_avx2();
const KernelTable& dense_kernels_avx512();
const KernelTable& dense_kernels_avx512_bf16();

}  // namespace trpo_fast
