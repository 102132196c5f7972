// What an Adam step needs beside matrix products, compiled once per instruction set with
// dense_kernels.inl.
#pragma once

#include "cpu/kernels/dense_kernels.h"
#include "cpu/kernels/simd.h"

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

template <class T>
inline T lanes_sum(Vector<T> v) {
  T sum = 0;
  for (int lane = 0; lane < kLanes<T>; ++lane) sum += v[lane];
  return sum;
}

template <class T>
T squares(const T* x, Index count) {
  Vector<T> even{}, odd{};
  Index i = 0;
  for (; i + 2 * kLanes<T> <= count; i += 2 * kLanes<T>) {
    const Vector<T> a = load(x + i), b = load(x + i + kLanes<T>);
    even += a * a;
    odd += b * b;
  }
  T sum = lanes_sum<T>(even + odd);
  for (; i < count; ++i) sum += x[i] * x[i];
  return sum;
}

template <class T>
void row_dots(const T* rows, Index count, Index stride, const T* x, Index features, T* sums) {
  for (Index r = 0; r < count; ++r, rows += stride) {
    Vector<T> products{};
    Index i = 0;
    for (; i + kLanes<T> <= features; i += kLanes<T>) products += load(rows + i) * load(x + i);
    T sum = lanes_sum<T>(products);
    for (; i < features; ++i) sum += rows[i] * x[i];
    sums[r] += sum;
  }
}

// Each round interleaves the first half of the rows with the second: after as many as halve the
// rows down to one, row i is column i.
template <class T>
inline void transpose_block(const T* from, Index from_stride, T* to, Index to_stride) {
  constexpr int lanes = kLanes<T>;
  Vector<T> rows[lanes], pairs[lanes];
#pragma GCC unroll 16
  for (int i = 0; i < lanes; ++i) rows[i] = load(from + i * from_stride);
#pragma GCC unroll 4
  for (int halves = lanes; halves > 1; halves /= 2) {
#pragma GCC unroll 16
    for (int i = 0; i < lanes / 2; ++i) {
      pairs[2 * i] = interleave<T>(rows[i], rows[i + lanes / 2], 0);
      pairs[2 * i + 1] = interleave<T>(rows[i], rows[i + lanes / 2], lanes / 2);
    }
#pragma GCC unroll 16
    for (int i = 0; i < lanes; ++i) rows[i] = pairs[i];
  }
#pragma GCC unroll 16
  for (int i = 0; i < lanes; ++i) store(to + i * to_stride, rows[i]);
}

template <class T>
void transpose(const T* from, Index from_stride, T* to, Index to_stride) {
  for (Index a = 0; a < kPadding; a += kLanes<T>) {
    for (Index b = 0; b < kPadding; b += kLanes<T>) {
      transpose_block<T>(from + a * from_stride + b, from_stride, to + b * to_stride + a,
                         to_stride);
    }
  }
}

}  // namespace
}  // namespace trpo_fast
