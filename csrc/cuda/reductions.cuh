// Sums in a fixed order: the same bits at every run, whatever order the blocks run in. No atomics.
#pragma once

#include "cuda/device.cuh"

namespace trpo_fast::cuda {

// Every lane gets the sum of the warp's values; a butterfly, so all get the same bits.
static __device__ __forceinline__ double warp_sum(double value) {
  for (int distance = 16; distance > 0; distance /= 2) {
    value += __shfl_xor_sync(0xffffffffu, value, distance);
  }
  return value;
}

// Sums over all threads of all blocks. Every call is a grid-wide barrier.
struct GridSums {
  double* global;  // [2][blocks][kGridSums]
  double* shared;  // [kWarps][kGridSums]
  int turn;

  // values: each thread's; then the totals, the same bits in every thread.
  template <int kCount>
  __device__ void operator()(double (&values)[kCount]) {
    static_assert(kCount <= kGridSums, "room in the buffers");
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    for (int i = 0; i < kCount; ++i) {
      const double sum = warp_sum(values[i]);
      if (lane == 0) shared[warp * kGridSums + i] = sum;
    }
    __syncthreads();
    // Two buffers in turns: a block may still read one while another block writes the next sums.
    double* const sums = global + turn * gridDim.x * kGridSums;
    turn = 1 - turn;
    if (threadIdx.x < kCount) {
      double sum = 0;
      for (int w = 0; w < kWarps; ++w) sum += shared[w * kGridSums + threadIdx.x];
      sums[blockIdx.x * kGridSums + threadIdx.x] = sum;
    }
    grid_sync();
    for (int i = 0; i < kCount; ++i) {
      double sum = 0;
      for (unsigned b = lane; b < gridDim.x; b += 32) sum += sums[b * kGridSums + i];
      values[i] = warp_sum(sum);
    }
  }
};

}  // namespace trpo_fast::cuda
