// The parts of an update as the whole grid does them: each ends with every block knowing the
// result.
#pragma once

#include "cuda/fisher_vector_product.cuh"
#include "cuda/line_search.cuh"
#include "cuda/panels/tensor_panels.cuh"
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

// A network in panels; tiled_problem.cuh has the same for wide ones. kTensorCores: products of
// float32 are reduced as args.products says.
template <class T, int kRows, bool kTensorCores>
class Problem {
 public:
  using Element = T;
  static constexpr bool kPreconditions = false;

  const ProblemArgs<T>& args;
  Panels<T, kRows> panels;
  Vectors<T> vectors;
  GridSums sums;

  __device__ explicit Problem(const ProblemArgs<T>& a)
      : args(a),
        panels(a),
        vectors(a, a.plan.weights_resident ? panels.partial : nullptr, panels.warp_parts),
        sums{a.sums, panels.warp_sums, 0} {}

  // Packs theta_old. Ends with a barrier of the grid.
  __device__ __noinline__ void prepare() {
    const ProblemArgs<T>& a = args;
    pack_weights(a, vectors);
    panels.read_log_std(a);
    grid_sync();
    if (!a.plan.weights_resident) return;
    T* const weights = const_cast<T*>(panels.weights);
    T* const backward = const_cast<T*>(panels.backward_weights);
    vectors.each_in_block([&](Index i) { weights[i] = a.weights[i]; });
    for (Index i = threadIdx.x; i < a.network.backward; i += kThreads) backward[i] = a.backward[i];
    __syncthreads();
  }

  __device__ void prepare_fisher() { cuda::prepare_fisher(panels); }

  // Loss and g = -dloss, packed in args.g; returns the loss and |g|^2 by reference.
  __device__ __noinline__ void gradient(double& loss, double& square) {
    double first[1] = {surrogate_pass(panels)};
    vectors.publish_partial();
    sums(first);
    loss = first[0];
    square = reduce_gradient(*this, [](Index, T sum) { return sum; });
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
    double square[1] = {partial_product(v)};
    square[0] += vectors.rest_square(v, damping);
    sums(square);
    return square[0];
  }

  // This block's partial sums of F v to where the grid reads them; returns this thread's part of
  // v'F v. With tensor cores their operands take the place of the weights in shared memory, which
  // nothing reads after the first product.
  __device__ double partial_product(const T* v) {
    if constexpr (kTensorCores) {
      const bool first = !packed_;
      packed_ = true;
      if (args.products == Products::tf32) {
        return tensor_product<Products::tf32>(args, v, first);
      }
      if (args.products == Products::bf16) {
        return tensor_product<Products::bf16>(args, v, first);
      }
      return tensor_product<Products::bf16x3>(args, v, first);
    } else {
      const double square = product_pass(panels, v);
      vectors.publish_partial();
      return square;
    }
  }

  // Mean loss and mean KL at W, a packed vector that the grid has finished writing.
  __device__ __noinline__ void evaluate(const T* W, double (&found)[2]) {
    panels.read_new_log_std(args, W);
    const T* const read = shared_copy(W);
    __syncthreads();
    candidate_pass(panels, read, found);
    sums(found);
  }

  // The network's outputs [N, outputs] to args.result.
  __device__ void forward() {
    const BlockRows<T> rows(args.rows);
    for (Index first = rows.begin; first < rows.end; first += kRows) {
      panels.forward(rows, first, panels.weights, false);
      store_outputs(panels, rows, first);
      __syncthreads();
    }
  }

  __device__ void report(Figure figure, double value) const { report_figure(args, figure, value); }

 private:
  bool packed_ = false;  // for tensor cores the weights' words are in shared memory
};

}  // namespace trpo_fast::cuda
