// The middle of F v = (1 / sum w) sum_n w_n J_n' M_n J_n v, between tangent and backward pass: the
// head's metric over the outputs of a panel of rows (Pearlmutter 1994; Schraudolph 2002). v'F v
// comes from them, for free and never negative.
#pragma once

#include "cuda/block.cuh"

namespace trpo_fast::cuda {

// u = w M zdot, in place; returns this thread's part of v'F v.
template <class P, class T = typename P::Element>
__device__ double metric_rows(const P& panels, const BlockRows<T>& rows, Index first) {
  const ProblemArgs<T>& a = panels.args;
  const int r = threadIdx.x;
  if (r >= P::kPanel) return 0;
  T* const u = panels.outputs() + r * panels.stride;
  if (r >= panels.panel_rows(rows, first)) {
    for (int i = 0; i < panels.net.last().out_padded; ++i) u[i] = 0;
    return 0;
  }
  const Index row = first + r;
  const T* const metric = a.shared_metric ? panels.variance : a.metric + row * a.metric_width;
  const double share = rows.share(row);
  return with_head(a.head(), [&](auto head) {
    const double square = share * head.metric_square(metric, u);
    head.apply_metric(metric, T(share), u);
    return square;
  });
}

}  // namespace trpo_fast::cuda
