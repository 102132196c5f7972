// The derivative of an activation as the finish of a product that ends at a hidden layer.
#pragma once

#include "cpu/kernels/dense_kernels.h"

namespace trpo_fast {

// C = c phi'(z), from what was kept of the forward pass: a = phi(z) where the slope costs nothing
// to compute from it, else phi'(z) itself.
template <class T>
void finish_with_slope(Product<T>& p, Activation activation, const T* value, const T* slope) {
  switch (activation) {
    case Activation::identity:
      return;
    case Activation::tanh:
      p.finish = Finish::times_tanh;
      p.S = value;
      return;
    case Activation::relu:
      p.finish = Finish::times_step;
      p.S = value;
      return;
    default:
      p.finish = Finish::times_slope;
      p.S = slope;
  }
}

}  // namespace trpo_fast
