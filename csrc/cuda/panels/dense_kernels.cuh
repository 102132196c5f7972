// The arithmetic on one block's panel of rows: products whose results stay in registers.
// Operands lie in shared memory, or in global memory where L1 holds them; rows are padded with
// zeros to a multiple of four elements.
#pragma once

#include "cuda/device.cuh"

namespace trpo_fast::cuda {

// kRows x kTileColumns sums: 16 x 16 threads, each with rows i, i + 16, ... and four neighbouring
// columns of each half.
template <class T, int kRows>
struct RowTile {
  static constexpr int kEach = kRows / 16;
  T sums[2][kEach][4];

  __device__ __forceinline__ static int row(int i) { return int(threadIdx.x) / 16 + 16 * i; }
  __device__ __forceinline__ static int column(int half) {
    return 4 * (int(threadIdx.x) % 16) + 64 * half;
  }

  __device__ __forceinline__ void clear() {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
#pragma unroll
      for (int i = 0; i < kEach; ++i) {
#pragma unroll
        for (int j = 0; j < 4; ++j) sums[half][i][j] = 0;
      }
    }
  }

  // sums += left [kRows, depth] right [depth, columns]; depth and columns multiples of four
  __device__ __forceinline__ void add(const T* left, int left_stride, const T* right,
                                      int right_stride, int depth, int columns) {
    for (int k = 0; k < depth; k += 4) {
      Vec4<T> a[kEach];
#pragma unroll
      for (int i = 0; i < kEach; ++i) a[i] = load4(left + row(i) * left_stride + k);
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        if (column(half) >= columns) continue;
#pragma unroll
        for (int s = 0; s < 4; ++s) {
          const Vec4<T> b = load4(right + (k + s) * right_stride + column(half));
#pragma unroll
          for (int i = 0; i < kEach; ++i) {
#pragma unroll
            for (int j = 0; j < 4; ++j) sums[half][i][j] += a[i].x[s] * b.x[j];
          }
        }
      }
    }
  }

  // finish(row, column, four neighbours) for every part of the result.
  template <class Finish>
  __device__ __forceinline__ void each(int columns, Finish&& finish) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      if (column(half) >= columns) continue;
#pragma unroll
      for (int i = 0; i < kEach; ++i) {
        Vec4<T> v;
#pragma unroll
        for (int j = 0; j < 4; ++j) v.x[j] = sums[half][i][j];
        finish(row(i), column(half), v);
      }
    }
  }
};

// out [in, out_columns] (+)= x' delta, over kRows rows; out's row `bias_row` (+)= column sums of
// delta, where that row is not one that x covers already (-1). A thread owns tiles of 4 x 4.
template <class T, int kRows>
__device__ __forceinline__ void add_weight_gradient(const T* x, int x_stride, int in, int bias_row,
                                                    const T* delta, int delta_stride,
                                                    int out_columns, bool first, T* out) {
  const int across = out_columns / 4, tiles = (in + 3) / 4 * across;
  for (int tile = threadIdx.x; tile < tiles; tile += kThreads) {
    const int i = 4 * (tile / across), o = 4 * (tile % across);
    const bool with_bias = bias_row >= 0 && i == 0;
    T sums[4][4] = {}, bias[4] = {};
#pragma unroll 4
    for (int r = 0; r < kRows; ++r) {
      const Vec4<T> a = load4(x + r * x_stride + i), d = load4(delta + r * delta_stride + o);
#pragma unroll
      for (int s = 0; s < 4; ++s) {
#pragma unroll
        for (int j = 0; j < 4; ++j) sums[s][j] += a.x[s] * d.x[j];
      }
      if (with_bias) {
#pragma unroll
        for (int j = 0; j < 4; ++j) bias[j] += d.x[j];
      }
    }
    const auto put = [&](int row, const T(&v)[4]) {
      T* const to = out + row * out_columns + o;
      Vec4<T> total = first ? Vec4<T>{{0, 0, 0, 0}} : load4(to);
#pragma unroll
      for (int j = 0; j < 4; ++j) total.x[j] += v[j];
      store4(to, total);
    };
#pragma unroll
    for (int s = 0; s < 4; ++s) put(i + s, sums[s]);
    if (with_bias) put(bias_row, bias);
  }
}

}  // namespace trpo_fast::cuda
