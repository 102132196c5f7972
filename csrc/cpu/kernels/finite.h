// Whether numbers are finite, by their exponent bits: one pass, on the calling thread alone.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>

#include "common/layers.h"

namespace trpo_fast {

inline std::uint32_t exponent_full(float x) {
  std::uint32_t bits;
  std::memcpy(&bits, &x, sizeof bits);
  return (bits & 0x7f800000u) == 0x7f800000u;
}

inline std::uint64_t exponent_full(double x) {
  std::uint64_t bits;
  std::memcpy(&bits, &x, sizeof bits);
  return (bits & 0x7ff0000000000000u) == 0x7ff0000000000000u;
}

template <class T>
bool all_finite(const T* x, Index count) {  // x [count]
  constexpr Index kBlock = 4096;            // without a branch inside, so that it vectorises
  for (Index start = 0; start < count; start += kBlock) {
    const Index end = std::min(count, start + kBlock);
    decltype(exponent_full(T())) found = 0;
    for (Index i = start; i < end; ++i) found |= exponent_full(x[i]);
    if (found) return false;
  }
  return true;
}

}  // namespace trpo_fast
