// Conjugate gradients on A x = b for a symmetric positive definite A given as a product
// (Hestenes & Stiefel 1952; Nocedal & Wright 2006, algorithm 5.2). Departures from the textbook:
// dot products in double, a relative residual stop, and an end at the last good x where A shows
// negative curvature, breaks down or is not finite.
#pragma once

#include <algorithm>
#include <cmath>
#include <limits>

#include "dense_kernels.h"

namespace trpo_fast {

enum class SolveStatus : int {
  done = 0,
  negative_curvature = 1,
  breakdown = 2,
  non_finite = 3,
  interrupted = 4,
};

struct SolveOptions {
  int iterations;    // cap
  double tolerance;  // on |r| / |b|; 0: run all
};

struct Solution {
  SolveStatus status;
  int iterations;
  double residual;   // |r| / |b|
  double curvature;  // x'Ax
};

// x, r, p, Ap: n elements each. product(p, Ap) computes Ap; interrupted() is asked before each
// product.
template <class T, class ProductFunction, class Interrupted>
Solution conjugate_gradient(const Kernels<T>& kernels, Index n, const T* b,
                            const SolveOptions& options, T* x, T* r, T* p, T* Ap,
                            ProductFunction&& product, Interrupted&& interrupted) {
  for (Index i = 0; i < n; ++i) {
    x[i] = 0;
    r[i] = p[i] = b[i];
  }
  const double norm = kernels.dot(b, b, n);
  double rr = norm;
  Solution s{SolveStatus::done, 0, 1, 0};
  // Below rounding level a residual is noise, and so is what further steps would add.
  const double tolerance = std::max(options.tolerance, 4.0 * std::numeric_limits<T>::epsilon());
  const double stop = tolerance * tolerance * norm;
  while (s.status == SolveStatus::done && s.iterations < options.iterations && rr > stop) {
    if (interrupted()) {
      s.status = SolveStatus::interrupted;
      break;
    }
    product(p, Ap);
    const double curvature = kernels.dot(p, Ap, n);
    if (!std::isfinite(curvature)) {
      s.status = SolveStatus::non_finite;
      break;
    }
    if (curvature <= 0) {
      s.status = SolveStatus::negative_curvature;
      break;
    }
    const double alpha = rr / curvature;      // alpha = r'r / p'Ap
    kernels.add_scaled(T(-alpha), Ap, r, n);  // r = r - alpha A p
    const double next = kernels.dot(r, r, n);
    if (!std::isfinite(next)) {
      s.status = SolveStatus::breakdown;
      break;
    }
    kernels.add_scaled(T(alpha), p, x, n);     // x = x + alpha p
    kernels.direction(T(next / rr), r, p, n);  // p = r + (r'r_new / r'r_old) p
    rr = next;
    ++s.iterations;
    s.curvature += alpha * alpha * curvature;  // x'Ax if the p are A-conjugate
  }
  s.residual = norm > 0 ? std::sqrt(rr / norm) : 0;
  // x'Ax = x'(b - r), which does not rest on the p staying conjugate; after a breakdown r is lost.
  if (s.status != SolveStatus::breakdown) s.curvature = kernels.dot(x, b, n) - kernels.dot(x, r, n);
  return s;
}

}  // namespace trpo_fast
