// The parts of an update for a network in panels, as the whole grid does them: each ends with every
// block knowing the result.
#pragma once

#include "cuda/grid.cuh"
#include "cuda/panels/passes.cuh"
#include "cuda/panels/tensor_panels.cuh"

namespace trpo_fast::cuda {

// kTensorCores: products of
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
    // Before the sums' barrier: after it another thread may read the next candidate's scale.
    const double shared = shared_kl(panels);
    sums(found);
    found[1] += shared;
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
