// One candidate of the line search over the outputs of a panel of rows: loss and KL together.
#pragma once

#include "cuda/surrogate_gradient.cuh"

namespace trpo_fast::cuda {

// Adds a panel's shares of loss and KL to this thread's sums; new_log_std is set.
template <class P, class T = typename P::Element>
__device__ void candidate_rows(const P& panels, const BlockRows<T>& rows, Index first,
                               double (&sums)[2]) {
  const ProblemArgs<T>& a = panels.args;
  const int r = threadIdx.x;
  if (r >= panels.panel_rows(rows, first)) return;
  const GaussianScale old_scale{panels.log_std, panels.inv_std};
  const GaussianScale new_scale{panels.new_log_std, panels.new_inv_std};
  const Index row = first + r;
  const T* const o = panels.outputs() + r * panels.stride;
  const T* const old = a.old_outputs + row * a.outputs;
  const std::uint8_t* const mask = rows.mask(row, a.outputs);
  const double now = log_prob(a.head(), o, new_scale, action_of(a, row), mask);
  const double share = rows.share(row);
  sums[0] -= share * std::exp(now - a.row_log_prob[row]) * double(a.advantages[row]);
  sums[1] += share * (a.kl_new_old ? kl(a.head(), o, new_scale, old, old_scale, mask)
                                   : kl(a.head(), old, old_scale, o, new_scale, mask));
}

}  // namespace trpo_fast::cuda
