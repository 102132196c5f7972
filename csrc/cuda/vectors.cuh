// The packed vectors of one problem, cut over the whole grid; and the sum of the blocks' partial
// results.
#pragma once

#include "cuda/reductions.cuh"

namespace trpo_fast::cuda {

template <class T>
class Vectors {
 public:
  // partial: this block's partial sums where they lie in shared memory, else null; warp_parts
  // [kWarps][32] in shared memory.
  __device__ Vectors(const ProblemArgs<T>& a, const T* partial, T* warp_parts)
      : a_(a), partial_(partial), warp_parts_(warp_parts) {}

  __device__ Index size() const { return a_.network.packed; }
  // Where an element lies in theta; -1 where no step moves it.
  __device__ Index place(Index i) const {
    const Index at = a_.map[i];
    return at < a_.parameters ? at : -1;
  }
  __device__ bool is_log_std(Index i) const {
    const Index first = a_.network.log_std;
    return i >= first && i < first + a_.scales;
  }
  __device__ bool is_unused(Index i) const {
    const Index used = a_.network.log_std + a_.scales;
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
    if (partial_ == nullptr) return;
    __syncthreads();
    T* const to = a_.partials + Index(blockIdx.x) * size();
    for (Index i = 4 * threadIdx.x; i < size(); i += 4 * kThreads) {
      store4(to + i, load4(partial_ + i));
    }
  }

  // An element of F v from the sum of the partial ones.
  __device__ T product_element(Index i, T sum, T v) const {
    if (is_log_std(i)) return T(kLogStdMetric) * v;
    return is_unused(i) ? T(0) : sum;
  }

  // This thread's part of v'(F + damping I)v that needs no data: of log std and of the damping.
  __device__ double rest_square(const T* v, double damping) const {
    double square = 0;
    each([&](Index i) {
      const double metric = damping + (is_log_std(i) ? kLogStdMetric : 0);
      if (place(i) >= 0) square += metric * double(v[i]) * double(v[i]);
    });
    return square;
  }

  // body(i, sum of the partial sums, in a fixed order) by one thread for every stepped element.
  template <class Body>
  __device__ void each_reduced(Body&& body) const {
    if (!a_.plan.tiled) return each_reduced_by_warps(body);
    each([&](Index i) {
      if (place(i) < 0) return;
      T sum = 0;
#pragma unroll 4
      for (int part = 0; part < a_.plan.partials; ++part) sum += a_.partials[part * size() + i];
      body(i, sum);
    });
  }

 private:
  // Where every block has a partial sum, in shares of 32 elements a block: its warps add every
  // eighth one, and then their results in order.
  template <class Body>
  __device__ void each_reduced_by_warps(Body&& body) const {
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    for (Index share = blockIdx.x; share * 32 < size(); share += gridDim.x) {
      const Index i = share * 32 + lane;
      T sum = 0;
      const bool stepped = i < size() && place(i) >= 0;
      if (stepped) {
#pragma unroll 4
        for (int b = warp; b < a_.plan.partials; b += kWarps) sum += a_.partials[b * size() + i];
      }
      warp_parts_[warp * 32 + lane] = sum;
      __syncthreads();
      if (warp == 0 && stepped) {
        for (int w = 1; w < kWarps; ++w) sum += warp_parts_[w * 32 + lane];
        body(i, sum);
      }
      __syncthreads();
    }
  }

  const ProblemArgs<T>& a_;
  const T* const partial_;
  T* const warp_parts_;
};

}  // namespace trpo_fast::cuda
