// A = E[a a'] over a layer's inputs, with a 1 for the bias: the half of K-FAC's factors that needs
// no gradient, from the activations that a PolicyProblem keeps, over evenly strided rows. Of
// rounded activations where the problem's products are in bfloat16.
#pragma once

#include "policy_problem.h"

namespace trpo_fast {

template <class T>
class InputMoments {
 public:
  // rows: how many are used, at most the problem's kept_rows().
  InputMoments(const PolicyBatch<T>& batch, const PolicyProblem<T>& problem, Index rows,
               void* workspace);
  static std::size_t workspace_bytes(const PolicyBatch<T>& batch, Index rows);

  // to [m, m], contiguous: m = inputs, and one more with the bias. After gradient() or
  // prepare_fisher().
  void compute(std::size_t layer, bool bias, T* to) const;

 private:
  InputMoments(const PolicyBatch<T>& batch, const PolicyProblem<T>* problem, Index rows,
               Arena&& arena);
  void gather(std::size_t layer, const Slabs& slabs, Index first, Index slab, T* rows) const;
  void put_rows(const Slabs& slabs, Index first, Index slab, const T* rows) const;

  const PolicyBatch<T>& batch_;
  const PolicyProblem<T>* problem_;
  Index rows_;
  bool rounded_;
  double weight_sum_;
  T *inputs_, *sums_;  // a layer's rows, in slabs
  Pair* pairs_;        // instead, where they are rounded
};

}  // namespace trpo_fast
