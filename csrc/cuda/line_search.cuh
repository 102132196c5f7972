// One candidate of the line search: a forward pass, mean loss and mean KL together, nothing stored.
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

// sums: this thread's parts of loss and KL at W (packed).
template <class T, int kRows>
__device__ void candidate_pass(Panels<T, kRows>& panels, const T* W, double (&sums)[2]) {
  const BlockRows<T> rows(panels.args.rows);
  sums[0] = sums[1] = 0;
  for (Index first = rows.begin; first < rows.end; first += kRows) {
    panels.forward(rows, first, W, false);
    candidate_rows(panels, rows, first, sums);
    __syncthreads();
  }
}

}  // namespace trpo_fast::cuda
