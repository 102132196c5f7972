// Adam's elementwise step, compiled once per instruction set with dense_kernels.inl.
#pragma once

#include "dense_kernels.h"

namespace trpo_fast {
namespace {

inline float square_root(float x) {
  return __builtin_sqrtf(x);
}
inline double square_root(double x) {
  return __builtin_sqrt(x);
}

// Plain loops over one block at a time: the compiler turns them into whole vectors, square roots
// included, which vector extensions do not have.
template <class T>
void adam(const AdamStep<T>& step, const T* __restrict g, T* __restrict m, T* __restrict v,
          T* __restrict p, Index count) {
  const AdamStep<T> s = step;
  for (Index start = 0; start < count; start += kPadding) {
    for (Index i = start; i < start + kPadding; ++i) {
      const T first = m[i] + s.first_decay * (g[i] - m[i]);            // m
      const T second = s.beta2 * v[i] + s.second_decay * g[i] * g[i];  // v
      const T root = square_root(second) / s.root_correction + s.eps;
      m[i] = first;
      v[i] = second;
      p[i] -= s.step_size * first / root;
    }
  }
}

}  // namespace
}  // namespace trpo_fast
