// What a block at work has, in panels and in tiles: its rows and its small arrays.
#pragma once

#include "cuda/device.cuh"

namespace trpo_fast::cuda {

// Neighbouring rows of a set: a block's share in panels, a chunk in tiles.
template <class T>
struct BlockRows {
  const RowSet<T>* set;
  Index begin, end;

  __device__ BlockRows(const RowSet<T>& rows)
      : set(&rows),
        begin(rows.rows * blockIdx.x / gridDim.x),
        end(rows.rows * (blockIdx.x + 1) / gridDim.x) {}
  __device__ BlockRows(const RowSet<T>& rows, Index first, Index last)
      : set(&rows), begin(first), end(last) {}
  // A row's share of a mean.
  __device__ double share(Index row) const {
    return set->weights ? double(set->weights[row]) / *set->weight_sum : 1.0 / double(set->rows);
  }
  __device__ const std::uint8_t* mask(Index row, int width) const {
    return set->mask ? set->mask + row * width : nullptr;
  }
};

// phi'(z) from what the cache holds for it: the value where that suffices, else the slope itself.
template <class T>
__device__ __forceinline__ T slope_of(Activation activation, T cached) {
  if (activation == Activation::identity) return 1;
  if (activation == Activation::tanh) return T(1) - cached * cached;
  if (activation == Activation::relu) return cached > T(0) ? T(1) : T(0);
  return cached;
}

template <class T>
__device__ __forceinline__ Vec4<T> slope_times(const LayerPlan& layer, const T* values,
                                               const T* slopes, const Vec4<T>& v) {
  const Vec4<T> s = load4(slopes ? slopes : values);
  Vec4<T> product;
#pragma unroll
  for (int j = 0; j < 4; ++j) product.x[j] = slope_of(layer.activation, s.x[j]) * v.x[j];
  return product;
}

// A block's small arrays, at the start of its shared memory.
template <class T>
struct BlockScalars {
  double *warp_sums, *gains, *log_std, *inv_std, *new_log_std, *new_inv_std, *log_std_sums;
  T *variance, *warp_parts;
  int end;  // what follows them, in elements

  __device__ BlockScalars(const ProblemArgs<T>& a, int panel_rows) {
    double* d = reinterpret_cast<double*>(dynamic_shared());
    warp_sums = d;
    gains = warp_sums + kWarps * kGridSums;
    log_std = gains + panel_rows;
    inv_std = log_std + a.actions;
    new_log_std = inv_std + a.actions;
    new_inv_std = new_log_std + a.actions;
    log_std_sums = new_inv_std + a.actions;
    variance = reinterpret_cast<T*>(d + scalar_doubles(panel_rows, a.actions));
    warp_parts = variance + round_up4(a.actions);
    end = int(variance + scalar_elements(a.actions) - reinterpret_cast<T*>(d));
  }

  // The Gaussian's scale at theta_old, by this block for itself.
  __device__ void read_log_std(const ProblemArgs<T>& a) {
    const int* const places = a.map + a.network.log_std;
    for (int i = threadIdx.x; i < a.scales; i += kThreads) {
      log_std[i] = a.theta[places[i]];
      inv_std[i] = std::exp(-log_std[i]);
      variance[i] = T(inv_std[i] * inv_std[i]);
    }
  }
  // The same of a candidate W (packed).
  __device__ void read_new_log_std(const ProblemArgs<T>& a, const T* W) {
    for (int i = threadIdx.x; i < a.scales; i += kThreads) {
      new_log_std[i] = double(W[a.network.log_std + i]);
      new_inv_std[i] = std::exp(-new_log_std[i]);
    }
  }
};

}  // namespace trpo_fast::cuda
