// Plain descriptions of a multilayer perceptron: sizes, strides, pointers. No Python, no torch.
#pragma once

#include <vector>

#include "common/activations.h"

namespace trpo_fast {

// One Linear layer and the activation behind it, read where torch keeps it.
template <class T>
struct Layer {
  const T* weight;  // [out, in], strides below, in elements
  Index weight_row_stride, weight_col_stride;
  const T* bias;  // [out] or null
  Index bias_stride;
  Index in, out;
  Activation activation;
  T parameter;  // negative_slope, alpha or beta; unused otherwise
};

template <class T>
using Layers = std::vector<Layer<T>>;

// A matrix owned by the caller.
template <class T>
struct MatrixView {
  T* data;  // [rows, cols], strides in elements
  Index rows, cols;
  Index row_stride, col_stride;
};

}  // namespace trpo_fast
