// What the whole grid does for an update, in panels and in tiles.
#pragma once

#include "cuda/block.cuh"
#include "cuda/vectors.cuh"

namespace trpo_fast::cuda {

// Packs theta_old, by the whole grid.
template <class T>
__device__ void pack_weights(const ProblemArgs<T>& a, const Vectors<T>& vectors) {
  vectors.each([&](Index i) {
    a.weights[i] = a.map[i] >= 0 ? a.theta[a.map[i]] : T(0);
    a.g[i] = 0;
  });
  for (int l = 1; l < a.network.count; ++l) {
    const LayerPlan& layer = a.network.layers[l];
    const Index size = Index(layer.out_padded) * layer.in_padded;
    for (Index i = Index(blockIdx.x) * kThreads + threadIdx.x; i < size;
         i += Index(gridDim.x) * kThreads) {
      const Index out = i / layer.in_padded, in = i % layer.in_padded;
      // Padding of the weight's rows holds the bias.
      const int from = in < layer.in ? a.map[layer.weight + in * layer.out_padded + out] : -1;
      a.backward[layer.backward + i] = from >= 0 ? a.theta[from] : T(0);
    }
  }
}

template <class T>
__device__ void report_figure(const ProblemArgs<T>& a, Figure figure, double value) {
  if (blockIdx.x == 0 && threadIdx.x == 0) a.figures[figure] = value;
}

// A panel's outputs to args.result [N, outputs].
template <class P, class T = typename P::Element>
__device__ void store_outputs(const P& panels, const BlockRows<T>& rows, Index first) {
  const ProblemArgs<T>& a = panels.args;
  const int elements = panels.panel_rows(rows, first) * a.outputs;
  for (int i = threadIdx.x; i < elements; i += kThreads) {
    const int row = i / a.outputs, column = i % a.outputs;
    a.result[(first + row) * a.outputs + column] = panels.outputs()[row * panels.stride + column];
  }
}

// g from the blocks' partial sums, packed in args.g; returns |g|^2. log_std(action, sum): that
// element of g.
template <class Problem, class LogStd, class T = typename Problem::Element>
__device__ double reduce_gradient(Problem& problem, LogStd&& log_std) {
  const ProblemArgs<T>& a = problem.args;
  const Vectors<T>& vectors = problem.vectors;
  double square[1] = {0};
  vectors.each_reduced([&](Index i, T sum) {
    T g = vectors.is_unused(i) ? T(0) : sum;
    if (vectors.is_log_std(i)) g = log_std(i - a.network.log_std, sum);
    a.g[i] = g;
    if (a.task == Task::gradient) a.result[vectors.place(i)] = g;
    square[0] += double(g) * double(g);
  });
  problem.sums(square);
  return square[0];
}

}  // namespace trpo_fast::cuda
