// What the kernels take from CUDA, in one place. tests/native/emulation has host versions of the
// same names, so that every kernel also compiles as plain C++ and is checked without a GPU.
#pragma once

#include <cooperative_groups.h>
#include <cuda_runtime.h>

#include "cuda/plan.h"

namespace trpo_fast::cuda {

#if defined(TRPO_FAST_EMULATION)
inline unsigned char* dynamic_shared() {
  return static_cast<unsigned char*>(emulation::dynamic_shared());
}
#else
static __device__ __forceinline__ unsigned char* dynamic_shared() {
  extern __shared__ __align__(32) unsigned char trpo_fast_shared[];
  return trpo_fast_shared;
}
#endif

// All blocks of a cooperative launch; orders their memory accesses too.
static __device__ __forceinline__ void grid_sync() {
  cooperative_groups::this_grid().sync();
}

// Four neighbours, moved in 16-byte accesses.
template <class T>
struct alignas(4 * sizeof(T)) Vec4 {
  T x[4];
};

template <class T>
__device__ __forceinline__ Vec4<T> load4(const T* from) {
  return *reinterpret_cast<const Vec4<T>*>(from);
}

template <class T>
struct alignas(2 * sizeof(T)) Vec2 {
  T x[2];
};

template <class T>
__device__ __forceinline__ Vec2<T> load2(const T* from) {
  return *reinterpret_cast<const Vec2<T>*>(from);
}

template <class T>
__device__ __forceinline__ void store4(T* to, const Vec4<T>& v) {
  *reinterpret_cast<Vec4<T>*>(to) = v;
}

}  // namespace trpo_fast::cuda
