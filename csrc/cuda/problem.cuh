// The parts of an update as the whole grid does them: each ends with every block knowing the
// result.
#pragma once

#include "fisher_vector_product.cuh"
#include "line_search.cuh"
#include "vectors.cuh"

namespace trpo_fast::cuda {

template <class T, int kRows>
class Problem {
 public:
  const ProblemArgs<T>& args;
  Panels<T, kRows> panels;
  Vectors<T, kRows> vectors;
  GridSums sums;

  __device__ explicit Problem(const ProblemArgs<T>& a)
      : args(a), panels(a), vectors(a, panels), sums{a.sums, panels.warp_sums, 0} {}

  // Packs theta_old. Ends with a barrier of the grid.
  __device__ __noinline__ void prepare() {
    const ProblemArgs<T>& a = args;
    vectors.each([&](Index i) {
      a.weights[i] = a.map[i] >= 0 ? a.theta[a.map[i]] : T(0);
      a.g[i] = 0;
    });
    for (int l = 1; l < a.network.count; ++l) pack_backward(a.network.layers[l]);
    if (a.head_kind == HeadKind::gaussian) {
      const int* const places = a.map + a.network.log_std;
      for (int i = threadIdx.x; i < a.actions; i += kThreads) {
        const double log_std = a.theta[places[i]];
        panels.log_std[i] = log_std;
        panels.inv_std[i] = std::exp(-log_std);
        panels.variance[i] = T(panels.inv_std[i] * panels.inv_std[i]);
      }
    }
    grid_sync();
    if (!a.plan.weights_resident) return;
    T* const weights = const_cast<T*>(panels.weights);
    T* const backward = const_cast<T*>(panels.backward_weights);
    vectors.each_in_block([&](Index i) { weights[i] = a.weights[i]; });
    for (Index i = threadIdx.x; i < a.network.backward; i += kThreads) backward[i] = a.backward[i];
    __syncthreads();
  }

  // Loss and g = -dloss, packed in args.g; returns the loss and |g|^2 by reference.
  __device__ __noinline__ void gradient(double& loss, double& square) {
    double first[1] = {surrogate_pass(panels)};
    vectors.publish_partial();
    sums(first);
    double second[1] = {0};
    vectors.each_reduced([&](Index i, T sum) {
      const T g = vectors.is_unused(i) ? T(0) : sum;
      args.g[i] = g;
      if (args.task == Task::gradient) args.result[vectors.place(i)] = g;
      second[0] += double(g) * double(g);
    });
    sums(second);
    loss = first[0];
    square = second[0];
  }

  // v for `product`: a packed vector that the grid has finished writing.
  __device__ const T* shared_copy(const T* packed) {
    if (!args.plan.weights_resident) return packed;
    vectors.each_in_block([&](Index i) { panels.direction[i] = packed[i]; });
    __syncthreads();
    return panels.direction;
  }

  // The blocks' partial sums of F v; returns v'(F + damping I)v.
  __device__ __noinline__ double product(const T* v, double damping) {
    double square[1] = {product_pass(panels, v)};
    vectors.each([&](Index i) {
      const double metric = damping + (vectors.is_log_std(i) ? 2 : 0);
      if (vectors.place(i) >= 0) square[0] += metric * double(v[i]) * double(v[i]);
    });
    vectors.publish_partial();
    sums(square);
    return square[0];
  }

  // An element of F v from the sum of the partial ones. The state-independent log std: F = 2 I,
  // whatever the data.
  __device__ T product_element(Index i, T sum, T v) const {
    if (vectors.is_log_std(i)) return T(2) * v;
    return vectors.is_unused(i) ? T(0) : sum;
  }

  // Mean loss and mean KL at W, a packed vector that the grid has finished writing.
  __device__ __noinline__ void evaluate(const T* W, double (&found)[2]) {
    if (args.head_kind == HeadKind::gaussian) {
      for (int i = threadIdx.x; i < args.actions; i += kThreads) {
        panels.new_log_std[i] = double(W[args.network.log_std + i]);
        panels.new_inv_std[i] = std::exp(-panels.new_log_std[i]);
      }
    }
    const T* const read = shared_copy(W);
    __syncthreads();
    candidate_pass(panels, read, found);
    sums(found);
  }

  __device__ void report(Figure figure, double value) const {
    if (blockIdx.x == 0 && threadIdx.x == 0) args.figures[figure] = value;
  }

 private:
  __device__ void pack_backward(const LayerPlan& layer) const {
    const Index size = Index(layer.out_padded) * layer.in_padded;
    for (Index i = Index(blockIdx.x) * kThreads + threadIdx.x; i < size;
         i += Index(gridDim.x) * kThreads) {
      const Index out = i / layer.in_padded, in = i % layer.in_padded;
      // Padding of the weight's rows holds the bias.
      const int from = in < layer.in ? args.map[layer.weight + in * layer.out_padded + out] : -1;
      args.backward[layer.backward + i] = from >= 0 ? args.theta[from] : T(0);
    }
  }
};

}  // namespace trpo_fast::cuda
