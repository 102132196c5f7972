// A = E[a a'] over the layers' inputs, with a 1 for the bias: the half of K-FAC's factors that
// needs no gradient, from the activations that a PolicyProblem keeps, over evenly strided rows. Of
// rounded activations where the problem's products are in bfloat16.
#pragma once

#include "cpu/policy/policy_problem.h"

namespace trpo_fast {

// Where a layer's A goes: [m, m], contiguous, m = inputs, and one more with the bias; or null.
template <class T>
struct MomentTarget {
  T* A;
  bool bias;
};

template <class T>
class InputMoments {
 public:
  // rows: how many are used, at most the problem's kept_rows().
  InputMoments(const PolicyBatch<T>& batch, const PolicyProblem<T>& problem, Index rows,
               void* workspace);
  static std::size_t workspace_bytes(const PolicyBatch<T>& batch, Index rows);

  // One target a layer. After gradient() or prepare_fisher().
  void compute(const std::vector<MomentTarget<T>>& targets) const;

 private:
  // A layer's rows, times the roots of their weights: floats, or rounded and in pairs.
  struct Inputs {
    Slabs slabs;
    T* rows;      // [slab][rows][width]
    Pair* pairs;  // [slab][pairs][width]
    T* sums;      // [slab][features + 1][width]
  };
  // One slab of a layer's columns.
  struct Task {
    std::size_t layer;
    Index slab, work;
  };
  InputMoments(const PolicyBatch<T>& batch, const PolicyProblem<T>* problem, Index rows,
               Arena&& arena);
  Index pairs() const { return (rows_ + 1) / 2; }
  void gather(Index first, const std::vector<MomentTarget<T>>& targets) const;
  void gather_floats(std::size_t layer, Index slab, const KeptRow* kept, Index count, T* to) const;
  bool copy_rounded(std::size_t layer, Index slab, const KeptRow* kept, Index count,
                    Bf16* to) const;
  void add_up(const Task& task, const MomentTarget<T>& target) const;

  const PolicyBatch<T>& batch_;
  const PolicyProblem<T>* problem_;
  Index rows_;
  bool rounded_;
  double weight_sum_;
  std::vector<Inputs> inputs_;  // by layer
  T* roots_;                    // of the rows' weights: the bias's inputs
  Pair* root_pairs_;
};

}  // namespace trpo_fast
