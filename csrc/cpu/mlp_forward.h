// Batched forward pass of a multilayer perceptron: what rollouts need of a policy or value
// function.
#pragma once

#include "packed_network.h"

namespace trpo_fast {

template <class T>
struct MlpForwardArgs {
  Layers<T> layers;
  MatrixView<const T> x;  // [rows, in]
  MatrixView<T> out;      // [rows, out]
  void* workspace;        // kAlignment-aligned, mlp_forward_workspace(layers) bytes
};

template <class T>
std::size_t mlp_forward_workspace(const Layers<T>& layers);

// out = layers(x). Allocates nothing but a few words a layer; x and out must not overlap.
template <class T>
void mlp_forward(const MlpForwardArgs<T>& args);

}  // namespace trpo_fast
