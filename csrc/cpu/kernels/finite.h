// Whether numbers are finite: one pass, on the calling thread alone.
#pragma once

#include <algorithm>
#include <cmath>
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

// NaN, or what rounds to infinity in float: from halfway between its greatest number and 2^128 on.
inline std::uint64_t beyond_float(double x) {
  return !(std::fabs(x) < 0x1.ffffffp127);
}

template <class T, class Flaw>
bool none_has(Flaw flaw, const T* x, Index count) {  // x [count]
  constexpr Index kBlock = 4096;  // without a branch inside, so that it vectorises
  for (Index start = 0; start < count; start += kBlock) {
    const Index end = std::min(count, start + kBlock);
    decltype(flaw(T())) found = 0;
    for (Index i = start; i < end; ++i) found |= flaw(x[i]);
    if (found) return false;
  }
  return true;
}

template <class T>
bool all_finite(const T* x, Index count) {
  return none_has([](T value) { return exponent_full(value); }, x, count);
}

inline bool all_finite_as_float(const double* x, Index count) {
  return none_has(beyond_float, x, count);
}

}  // namespace trpo_fast
