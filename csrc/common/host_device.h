// What all code of host and device shares: how its functions are declared, the type of its sizes.
#pragma once

#include <cstdint>

#if defined(__CUDACC__)
#define TRPO_FAST_HOST_DEVICE static __host__ __device__ inline
#define TRPO_FAST_MEMBER __host__ __device__ inline
#else
// static: files compiled for different instruction sets must not share one copy.
#define TRPO_FAST_HOST_DEVICE static inline __attribute__((always_inline))
#define TRPO_FAST_MEMBER inline __attribute__((always_inline))
#endif

namespace trpo_fast {

using Index = std::int64_t;

}  // namespace trpo_fast
