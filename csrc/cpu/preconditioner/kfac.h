// M^-1 r with a Kronecker-factored M: for each layer's r laid out as R [out, columns], the bias
// last, either U_G [(U_G' R U_A) / (l_G l_A' + damping)] U_A' in the factors' eigenbases or
// (G + c I)^-1 R (A + c I)^-1 (Martens & Grosse 2015, section 4.2 and 6.3). The matrices are made
// in Python, once for many solves; trpo_fast/preconditioning/kfac.py says how.
#pragma once

#include <vector>

#include "cpu/kernels/dense_kernels.h"

namespace trpo_fast {

template <class T>
struct KroneckerBlock {
  Index weight, bias;          // where R's parts start in the flat vector; -1: not part of it
  Index inputs, columns, out;  // columns: inputs where weight >= 0, and one more where bias >= 0
  const T* left;               // U_G, [out, out], contiguous; or an inverse, slabs likewise
  const T* right;              // U_A or an inverse, slabs of [columns, columns]
  const T* right_transposed;   // U_A', slabs likewise; null: the matrices are inverses
  const T* scale;              // 1 / (l_G l_A' + damping), slabs of [out, columns]; null likewise
};

template <class T>
class Preconditioner {
 public:
  // diagonal [n]: M^-1 outside the blocks. memory: work_size(blocks) elements.
  Preconditioner(const T* diagonal, Index n, std::vector<KroneckerBlock<T>> blocks, T* memory,
                 int threads);
  static Index work_size(const std::vector<KroneckerBlock<T>>& blocks);

  // z = M^-1 r [n]
  void apply(const T* r, T* z) const;

 private:
  // What a block does next: C = left right, into one half of its memory from the other.
  enum class Step { none, enter, rotate, back, leave };
  static constexpr int kStages = 4;
  static Step step_of(const KroneckerBlock<T>& block, int stage);
  Product<T> product(const KroneckerBlock<T>& block, Step step, const T* r, T* from, T* to) const;
  void run(int stage, const T* r) const;
  void copy_out(const KroneckerBlock<T>& block, const T* from, T* z) const;

  const Kernels<T>& kernels_;
  const T* diagonal_;
  Index n_;
  std::vector<KroneckerBlock<T>> blocks_;
  std::vector<T*> first_, second_;  // each block's two halves; the result ends in the second
  int threads_;
};

}  // namespace trpo_fast
