// Batched forward pass of a multilayer perceptron: what rollouts need of a policy or value
// function.
#pragma once

#include "cpu/kernels/panels.h"
#include "cpu/network/packed_network.h"

namespace trpo_fast {

// One panel of rows through the network, nothing kept: the layers write the two panels in turn.
// Returns the one with the outputs.
template <class T>
Panel<T> forward_panel(const Kernels<T>& kernels, const PackedNetwork<T>& network,
                       const MatrixView<const T>& x, Index rows, Index panel_rows,
                       T* const (&panels)[2]) {
  LeftOperand<T> input = rows_of(x);
  Panel<T> z{panels[0], Slabs(1), panel_rows};
  int target = 0;
  for (const PackedLayer<T>& layer : network.layers) {
    z = {panels[target], layer.out_slabs, panel_rows};
    Product<T> p = into<T>(z, rows, layer.bias);
    add_term<T>(p, input, packed<T>(layer.weight, layer.out_slabs, layer.in), layer.in);
    kernels.product(p);
    activate_rows<T>(kernels, layer, z, rows, nullptr);
    input = rows_of(z);
    target = 1 - target;
  }
  return z;
}

// A network packed once for any number of calls. Holds pointers into the caller's workspace.
template <class T>
class MlpForward {
 public:
  MlpForward(const Layers<T>& layers, int threads, void* workspace);
  static std::size_t workspace_bytes(const Layers<T>& layers, int threads);

  // out [rows, outputs] = layers(x [rows, in]); x and out must not overlap.
  void operator()(const MatrixView<const T>& x, const MatrixView<T>& out) const;

 private:
  MlpForward(const Layers<T>& layers, int threads, Arena&& arena);

  const Kernels<T>& kernels_;
  PackedNetwork<T> network_;
  Index panel_size_;
  T* panels_;  // two for each thread, which the layers write in turn
  int threads_;
};

}  // namespace trpo_fast
