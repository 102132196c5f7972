// The packed vectors of one problem, cut over the whole grid; and the sum of the blocks' partial
// results.
#pragma once

#include "panels.cuh"

namespace trpo_fast::cuda {

template <class T, int kRows>
class Vectors {
 public:
  __device__ Vectors(const ProblemArgs<T>& a, const Panels<T, kRows>& panels)
      : a_(a), panels_(panels) {}

  __device__ Index size() const { return a_.network.packed; }
  // Where an element lies in theta; -1 where no step moves it.
  __device__ Index place(Index i) const {
    const Index at = a_.map[i];
    return at < a_.parameters ? at : -1;
  }
  __device__ bool is_log_std(Index i) const {
    const Index first = a_.network.log_std;
    return a_.head_kind == HeadKind::gaussian && i >= first && i < first + a_.actions;
  }
  __device__ bool is_unused(Index i) const {
    const Index used = a_.network.log_std + (a_.head_kind == HeadKind::gaussian ? a_.actions : 0);
    return i >= used;
  }

  // body(i) for this thread's elements: always the same ones.
  template <class Body>
  __device__ void each(Body&& body) const {
    for (Index i = Index(blockIdx.x) * kThreads + threadIdx.x; i < size();
         i += Index(gridDim.x) * kThreads) {
      body(i);
    }
  }
  // body(i) for all elements, by every block for itself.
  template <class Body>
  __device__ void each_in_block(Body&& body) const {
    for (Index i = threadIdx.x; i < size(); i += kThreads) body(i);
  }

  // This block's partial sums, where they lie in shared memory, to where the grid reads them.
  __device__ void publish_partial() const {
    if (!a_.plan.weights_resident) return;
    __syncthreads();
    T* const to = a_.partials + Index(blockIdx.x) * size();
    for (Index i = 4 * threadIdx.x; i < size(); i += 4 * kThreads) {
      store4(to + i, load4(panels_.partial + i));
    }
  }

  // body(i, sum of all blocks' partial sums) by one thread for every stepped element. In shares of
  // 32 elements a block: its warps add every eighth partial sum, and then their results in order.
  template <class Body>
  __device__ void each_reduced(Body&& body) const {
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    for (Index share = blockIdx.x; share * 32 < size(); share += gridDim.x) {
      const Index i = share * 32 + lane;
      T sum = 0;
      const bool stepped = i < size() && place(i) >= 0;
      if (stepped) {
#pragma unroll 4
        for (unsigned b = warp; b < gridDim.x; b += kWarps) sum += a_.partials[b * size() + i];
      }
      panels_.warp_parts[warp * 32 + lane] = sum;
      __syncthreads();
      if (warp == 0 && stepped) {
        for (int w = 1; w < kWarps; ++w) sum += panels_.warp_parts[w * 32 + lane];
        body(i, sum);
      }
      __syncthreads();
    }
  }

 private:
  const ProblemArgs<T>& a_;
  const Panels<T, kRows>& panels_;
};

}  // namespace trpo_fast::cuda
