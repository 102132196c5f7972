// F v = (1 / sum w) sum_n w_n J_n' M_n J_n v, one fused pass over a block's panels: tangent, head
// metric, backward (Pearlmutter 1994; Schraudolph 2002). v'F v comes from the outputs, for free and
// never negative.
#pragma once

#include "cuda/surrogate_gradient.cuh"

namespace trpo_fast::cuda {

// The caches of the Fisher rows, where the gradient's pass does not fill them.
template <class T, int kRows>
__device__ __noinline__ void prepare_fisher(Panels<T, kRows>& panels) {
  const BlockRows<T> rows(panels.args.fisher_rows);
  for (Index first = rows.begin; first < rows.end; first += kRows) {
    panels.forward(rows, first, panels.weights, true);
    const int r = threadIdx.x;
    if (r < panels.panel_rows(rows, first)) {
      cache_metric(panels, rows, first + r, panels.outputs() + r * panels.stride);
    }
    __syncthreads();
  }
}

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
  const bool shared = a.head_kind == HeadKind::gaussian;
  const T* const metric = shared ? panels.variance : a.metric + row * a.outputs;
  const double share = rows.share(row);
  const double square = share * metric_square(a.head(), metric, u);
  apply_metric(a.head(), metric, T(share), u);
  return square;
}

// This block's partial product with v (packed); returns this thread's part of v'F v, without log
// std.
template <class T, int kRows>
__device__ double product_pass(Panels<T, kRows>& panels, const T* v) {
  const BlockRows<T> rows(panels.args.fisher_rows);
  double square = 0;
  for (Index first = rows.begin; first < rows.end; first += kRows) {
    panels.tangent(rows, first, v);
    square += metric_rows(panels, rows, first);
    panels.backward(rows, first, first == rows.begin);
  }
  if (rows.begin == rows.end) {
    for (Index i = threadIdx.x; i < panels.net.packed; i += kThreads) panels.partial[i] = 0;
  }
  return square;
}

}  // namespace trpo_fast::cuda
