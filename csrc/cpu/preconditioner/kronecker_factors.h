// The statistics of a K-FAC preconditioner (Martens & Grosse 2015): for each layer A = E[a a'] over
// its inputs, with a 1 for the bias, and G = E[e e'] over output gradients e of the true Fisher,
// backpropagated from one random-sign draw a row of the head's metric. Over evenly strided rows.
#pragma once

#include "cpu/policy/policy_problem.h"

namespace trpo_fast {

// Where a layer's factors go, contiguous; null: not wanted.
template <class T>
struct FactorTarget {
  T* A;       // [m, m], m = inputs, and one more with the bias
  bool bias;  // whether A has the bias's 1
  T* G;       // [out, out]
};

template <class T>
class KroneckerFactors {
 public:
  // rows: how many of the batch's rows are used.
  KroneckerFactors(const PolicyBatch<T>& batch, Index rows, void* workspace);
  static std::size_t workspace_bytes(const PolicyBatch<T>& batch, Index rows);

  // signs [rows, outputs] of +-1
  void compute(const T* signs, const std::vector<FactorTarget<T>>& targets) const;

 private:
  KroneckerFactors(const PolicyBatch<T>& batch, Index rows, Arena&& arena);
  Index row_of(Index i) const { return i * batch_.rows.obs.rows / rows_; }
  Panel<T> rows_from(const Panel<T>& all, Index first) const;
  Panel<T> outputs_of(std::size_t layer, Index first) const;
  void forward(Index first, Index count) const;
  void draw(const T* signs, Index first, Index count, T* row) const;
  void backward(Index first, Index count) const;
  void weigh(Index first, Index count) const;
  T* slope_of(std::size_t layer, const Panel<T>& outputs) const;

  const PolicyBatch<T>& batch_;
  const Kernels<T>& kernels_;
  Head head_;
  Index rows_;
  double weight_sum_;  // of the rows that are used
  PackedNetwork<T> weights_;
  std::vector<T*> backward_weights_;  // [in slabs][out][width]
  // A layer's inputs [rows, in + 1], output gradients [rows, out] and stored slopes or null. Rows
  // are times the root of their weight where there are weights.
  std::vector<Panel<T>> inputs_, gradients_;
  std::vector<T*> slopes_;
  double* inv_std_;
  T* row_buffers_;  // one row of outputs for each thread
  T* moments_;      // where the factors are summed up, in slabs
};

}  // namespace trpo_fast
