// exp, expm1, tanh and sigmoid on vectors of floats. Doubles go through libm, element by element:
// they are here to be right, floats to be fast. tests/backends/cpu/test_cpu_math.py holds the error
// bounds.
#pragma once

#include <cmath>

#include "cpu/kernels/simd.h"

namespace trpo_fast {
namespace {

// x = n ln 2 + r with |r| <= ln(2) / 2 (Cody & Waite's two-part ln 2); n as float and as integer.
struct ReducedExponent {
  Vector<float> r;
  IntegerVector<float> n;
};

inline ReducedExponent reduce_exponent(Vector<float> x) {
  constexpr float kRound =
      12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer in the low bits
  const Vector<float> shifted = x * 1.44269504088896341f + kRound;
  const Vector<float> n = shifted - kRound;
  const IntegerVector<float> bits = bits_as<IntegerVector<float>>(shifted);
  constexpr std::int32_t kRoundBits = 0x4B400000;
  return {(x - n * 0.693359375f) - n * -2.12194440e-4f, bits - kRoundBits};
}

// expm1(r) = r + r^2 q(r) for |r| <= ln(2) / 2; q fitted for least maximal relative error
// (2.4e-10).
inline Vector<float> expm1_reduced(Vector<float> r) {
  Vector<float> q = broadcast(1.984587711340649e-4f);
  q = q * r + 1.394062765258712e-3f;
  q = q * r + 8.333389371780507e-3f;
  q = q * r + 4.16663609082497e-2f;
  q = q * r + 1.666666637044161e-1f;
  q = q * r + 5.000000044165502e-1f;
  return r + r * r * q;
}

inline Vector<float> power_of_two(IntegerVector<float> n) {
  return bits_as<Vector<float>>((n + 127) << 23);
}

template <class T>
inline Vector<T> select(IntegerVector<T> mask, Vector<T> yes, Vector<T> no) {
  return mask ? yes : no;
}

inline Vector<float> vector_exp(Vector<float> x) {
  // Past these bounds the result is 0 or inf; NaN compares false and stays.
  Vector<float> bounded = select<float>(x > 89.0f, broadcast(89.0f), x);
  bounded = select<float>(bounded < -104.0f, broadcast(-104.0f), bounded);
  const ReducedExponent reduced = reduce_exponent(bounded);
  // 2^n in two factors, because n = 128 and denormal results leave the range of one.
  const IntegerVector<float> half = reduced.n >> 1;
  const Vector<float> p = expm1_reduced(reduced.r) + 1.0f;
  return p * power_of_two(half) * power_of_two(reduced.n - half);
}

// Accurate near 0, which is what the KL's small terms and elu need.
inline Vector<float> vector_expm1(Vector<float> x) {
  Vector<float> bounded = select<float>(x > 89.0f, broadcast(89.0f), x);
  bounded = select<float>(bounded < -30.0f, broadcast(-30.0f), bounded);
  const ReducedExponent reduced = reduce_exponent(bounded);
  const IntegerVector<float> half = reduced.n >> 1;
  const Vector<float> low = power_of_two(half), high = power_of_two(reduced.n - half);
  const Vector<float> scale_minus_1 = low * high - 1.0f;
  const Vector<float> small = (expm1_reduced(reduced.r) * low) * high + scale_minus_1;
  // n = 128: 2^n itself overflows although the result need not.
  const Vector<float> large = ((expm1_reduced(reduced.r) + 1.0f) * low) * high;
  return select<float>(bounded > 60.0f, large, small);
}

// tanh x = e / (e + 2) with e = expm1(2 |x|), the sign put back.
inline Vector<float> vector_tanh(Vector<float> x) {
  const IntegerVector<float> sign = bits_as<IntegerVector<float>>(x) & INT32_MIN;
  const Vector<float> magnitude =
      bits_as<Vector<float>>(bits_as<IntegerVector<float>>(x) & INT32_MAX);
  // From 9.02 on the nearest float is 1.
  const Vector<float> bounded = select<float>(magnitude > 10.0f, broadcast(10.0f), magnitude);
  const ReducedExponent reduced = reduce_exponent(bounded + bounded);
  const Vector<float> scale = power_of_two(reduced.n);
  const Vector<float> e = expm1_reduced(reduced.r) * scale + (scale - 1.0f);
  const Vector<float> result = e / (e + 2.0f);
  return bits_as<Vector<float>>(bits_as<IntegerVector<float>>(result) | sign);
}

inline Vector<float> vector_sigmoid(Vector<float> x) {
  return 1.0f / (1.0f + vector_exp(-x));
}

template <double (*function)(double)>
inline Vector<double> each(Vector<double> x) {
  for (int lane = 0; lane < kLanes<double>; ++lane) x[lane] = function(x[lane]);
  return x;
}

inline Vector<double> vector_exp(Vector<double> x) {
  return each<std::exp>(x);
}
inline Vector<double> vector_expm1(Vector<double> x) {
  return each<std::expm1>(x);
}
inline Vector<double> vector_tanh(Vector<double> x) {
  return each<std::tanh>(x);
}
inline Vector<double> vector_sigmoid(Vector<double> x) {
  return 1.0 / (1.0 + vector_exp(-x));
}

}  // namespace
}  // namespace trpo_fast
