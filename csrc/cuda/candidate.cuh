// One candidate of the line search over the outputs of a panel of rows: loss and KL together.
#pragma once

#include "cuda/surrogate_gradient.cuh"

namespace trpo_fast::cuda {

// Adds a panel's shares of loss and KL, but for shared_kl, to this thread's sums; new_log_std is
// set.
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
  const std::uint8_t* const mask = rows.mask(row, a.mask_width);
  with_head(a.head(), [&](auto head) {
    const double now = head.log_prob(o, new_scale, action_of(a, row), mask);
    const double share = rows.share(row);
    sums[0] -= share * std::exp(now - a.row_log_prob[row]) * double(a.advantages[row]);
    sums[1] += share * (a.kl_new_old ? head.row_kl(o, old, old_scale, mask)
                                     : head.row_kl(old, o, new_scale, mask));
  });
}

// What every row's KL owes to scales that are no outputs; new_log_std is set.
template <class P>
__device__ double shared_kl(const P& panels) {
  const GaussianScale old_scale{panels.log_std, panels.inv_std};
  const GaussianScale new_scale{panels.new_log_std, panels.new_inv_std};
  return with_head(panels.args.head(), [&](auto head) {
    return panels.args.kl_new_old ? head.shared_kl(new_scale, old_scale)
                                  : head.shared_kl(old_scale, new_scale);
  });
}

}  // namespace trpo_fast::cuda
