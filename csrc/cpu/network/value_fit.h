// Minibatch Adam on the mean-squared error of a network with one output: a critic's fit.
//
// Parameters and moments stay in the kernels' layout from the first minibatch to the last. A
// minibatch is split into chunks by its size alone; each owns a gradient, and they are added in
// their order, so that the result has the same bits for any number of threads.
#pragma once

#include "cpu/network/packed_network.h"

namespace trpo_fast {

struct AdamOptions {
  double lr, beta1, beta2, eps;
};

// Where torch keeps a layer's weight and bias, or a moment of them, to be written.
template <class T>
struct LayerTarget {
  T* weight;  // [out, in]
  Index weight_row_stride, weight_col_stride;
  T* bias;  // [out] or null
  Index bias_stride;
};

template <class T>
struct RegressionRows {
  MatrixView<const T> x;      // [N, in]
  const T* targets;           // [N]
  const std::int64_t* order;  // [count], which rows, in which order
  Index count;
};

struct FitFigures {
  double squared_error;  // summed over the rows whose step was taken, before each step
  Index refused;         // rows whose minibatch gave a loss or a gradient that is not finite
  std::int64_t steps;    // Adam steps so far, those before this call included
};

template <class T>
class ValueFit {
 public:
  // The three describe the same network: its parameters, and Adam's moments in their places.
  ValueFit(const Layers<T>& parameters, const Layers<T>& exp_avg, const Layers<T>& exp_avg_sq,
           Index batch_rows, int threads, void* workspace);
  static std::size_t workspace_bytes(const Layers<T>& parameters, Index batch_rows, int threads);

  // One step for each `batch_rows` rows of the order; a last, smaller minibatch counts as one.
  FitFigures run(const RegressionRows<T>& rows, const AdamOptions& options, std::int64_t steps);

  enum class What { parameters, exp_avg, exp_avg_sq };
  void write(What what, const std::vector<LayerTarget<T>>& targets) const;

 private:
  struct Offsets {
    Index weight, bias;
  };
  struct Hidden {
    Index value, slope;  // offsets in a worker's scratch; slope -1: from the value
  };

  ValueFit(const Layers<T>& layers, Index batch_rows, int threads, Arena&& arena);
  // Packs all layers into a flat vector; gives the hidden ones.
  PackedNetwork<T> read(const Layers<T>& layers, T* flat) const;
  Index chunks_of(Index rows) const;
  void transpose_weights() const;
  void gather(const RegressionRows<T>& rows, Index first, Index count, T* x) const;
  Panel<T> panel(int worker, Index offset, const Slabs& slabs) const;
  Panel<T> hidden(int worker, std::size_t layer) const;
  T* slopes(int worker, std::size_t layer) const;
  // The values of the rows, [rows], in the worker's scratch.
  T* forward(const MatrixView<const T>& x, int worker) const;
  // What the last layer reads, [rows, in].
  RightOperand<T> last_inputs(const MatrixView<const T>& x, int worker) const;
  void backward(const MatrixView<const T>& x, const T* delta, int worker, T* gradient,
                bool first) const;
  void last_gradient(const RightOperand<T>& input, const T* delta, Index rows, T* gradient,
                     bool first) const;
  void layer_gradient(std::size_t layer, const LeftOperand<T>& input, const Panel<T>& delta,
                      Index rows, T* gradient, bool first) const;
  // The gradient and the squared error of rows first .. last of a minibatch of `batch` rows.
  double chunk(const RegressionRows<T>& rows, Index first, Index last, Index batch, int worker,
               T* gradient) const;
  // Squared error of rows first .. first + batch, their gradient in the first chunk's place.
  double minibatch(const RegressionRows<T>& rows, Index first, Index batch) const;
  bool step(double loss, const AdamOptions& options, std::int64_t number) const;

  const Kernels<T>& kernels_;
  Layers<T> layers_;
  Index batch_rows_;
  int threads_;
  std::vector<Offsets> offsets_;  // by layer, in a flat vector of packed parameters
  std::vector<Hidden> hidden_;    // by hidden layer
  std::vector<T*> transposed_;    // W as [out][in slabs], by hidden layer; null for the first
  Index size_, scratch_size_, inputs_, values_, buffers_[2];
  T *parameters_, *exp_avg_, *exp_avg_sq_, *gradients_, *scratch_;
  double* errors_;
  PackedNetwork<T> network_;  // the hidden layers; the last is a row of weights and a bias
};

}  // namespace trpo_fast
