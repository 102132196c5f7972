// One block's passes over its rows, panel by panel: surrogate gradient, Fisher product, candidate.
#pragma once

#include "cuda/candidate.cuh"
#include "cuda/head_metric.cuh"
#include "cuda/panels/panels.cuh"
#include "cuda/surrogate_gradient.cuh"

namespace trpo_fast::cuda {

// This block's partial gradient; returns this thread's part of the loss.
template <class T, int kRows>
__device__ double surrogate_pass(Panels<T, kRows>& panels) {
  const ProblemArgs<T>& a = panels.args;
  const BlockRows<T> rows(a.rows);
  double loss = 0;
  if (threadIdx.x < unsigned(a.scales)) panels.log_std_sums[threadIdx.x] = 0;
  for (Index first = rows.begin; first < rows.end; first += kRows) {
    panels.forward(rows, first, panels.weights, true);
    loss += surrogate_rows(panels, rows, first);
    __syncthreads();
    log_std_rows(panels, rows, first);
    __syncthreads();
    delta_rows(panels, rows, first);
    panels.backward(rows, first, first == rows.begin);
  }
  if (threadIdx.x < unsigned(a.scales)) {
    panels.partial[panels.net.log_std + threadIdx.x] = T(panels.log_std_sums[threadIdx.x]);
  }
  return loss;
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
