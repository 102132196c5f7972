// Batched forward pass of a multilayer perceptron: what rollouts need of a policy or value
// function.
#pragma once

#include "packed_network.h"
#include "panels.h"

namespace trpo_fast {

template <class T>
struct MlpForwardArgs {
  Layers<T> layers;
  MatrixView<const T> x;  // [rows, in]
  MatrixView<T> out;      // [rows, out]
  void* workspace;        // kAlignment-aligned, mlp_forward_workspace(layers) bytes
};

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

template <class T>
std::size_t mlp_forward_workspace(const Layers<T>& layers);

// out = layers(x). Allocates nothing but a few words a layer; x and out must not overlap.
template <class T>
void mlp_forward(const MlpForwardArgs<T>& args);

}  // namespace trpo_fast
