// Preconditioned conjugate gradients on A x = b for a symmetric positive definite A given as a
// product (Hestenes & Stiefel 1952; Nocedal & Wright 2006, algorithms 5.2 and 5.3). Departures from
// the textbook: dot products in double, a stop on the relative residual or on the quadratic model's
// relative progress (Martens 2010, section 4.4, over one iteration), and an end at the last good x
// where A shows negative curvature, breaks down or is not finite.
#pragma once

#include <algorithm>
#include <cmath>
#include <limits>

#include "common/update_options.h"
#include "cpu/kernels/dense_kernels.h"

namespace trpo_fast {

struct Solution {
  SolveStatus status;
  int iterations;
  double residual;   // |r| / |b|
  double quadratic;  // x'Ax
};

// Memory of a solve, n elements each; z is null where there is no preconditioner.
template <class T>
struct SolveWork {
  T *x, *r, *z, *p, *Ap;
};

// x = x + alpha p, where r is not wanted any more: with Ax = b - r, x'Ax grows by 2 alpha p'(b - r)
// + alpha^2 p'Ap.
template <class T, class Dot>
Solution last_step(const Kernels<T>& kernels, Index n, const T* b, const SolveWork<T>& work,
                   Dot&& dot, double alpha, double curvature, Solution s) {
  const auto of_old = [&](const T* v) { return dot(v, b) - dot(v, work.r); };
  s.quadratic = of_old(work.x) + 2 * alpha * of_old(work.p) + alpha * alpha * curvature;
  kernels.add_scaled(T(alpha), work.p, work.x, n);
  ++s.iterations;
  return s;
}

// x = A^-1 b. A.product(p, Ap) computes Ap. Where A.halves(), A.curvature(p) computes p'Ap and
// A.finish(p, Ap) what is left of Ap for that same p. A.agreed(number) is that number, or what
// whoever else does the same solve takes for it. precondition(r, z) computes z = M^-1 r;
// interrupted() is asked before each product.
template <class T, class Operator, class Precondition, class Interrupted>
Solution conjugate_gradient(const Kernels<T>& kernels, Index n, const T* b,
                            const SolveOptions& options, const SolveWork<T>& work, Operator&& A,
                            Precondition&& precondition, Interrupted&& interrupted) {
  T *const x = work.x, *const r = work.r, *const p = work.p, *const Ap = work.Ap;
  const auto dot = [&](const T* u, const T* v) { return A.agreed(kernels.dot(u, v, n)); };
  for (Index i = 0; i < n; ++i) {
    x[i] = p[i] = 0;
    r[i] = b[i];
  }
  const double norm = dot(b, b);
  double rr = norm, rz_old = std::numeric_limits<double>::infinity(), progress = 0;
  bool lost = false;  // r, and with it x'(b - r)
  const bool may_halve = !options.last_residual && A.halves();
  Solution s{SolveStatus::done, 0, 1, 0};
  // Below rounding level a residual is noise, and so is what further steps would add.
  const double tolerance = std::max(options.tolerance, 4.0 * std::numeric_limits<T>::epsilon());
  const double stop = tolerance * tolerance * norm;
  while (s.iterations < options.iterations && rr > stop) {
    if (interrupted()) {
      s.status = SolveStatus::interrupted;
      break;
    }
    if (work.z != nullptr) precondition(r, work.z);  // z = M^-1 r
    const T* const z = work.z != nullptr ? work.z : r;
    const double rz = work.z != nullptr ? dot(r, z) : rr;
    if (!std::isfinite(rz) || rz <= 0) {
      s.status = SolveStatus::breakdown;
      break;
    }
    kernels.direction(T(rz / rz_old), z, p, n);  // p = z + (r'z / r_old'z_old) p
    const bool capped = s.iterations + 1 == options.iterations;
    const bool halved = may_halve && (capped || options.progress > 0);
    if (!halved) A.product(p, Ap);
    const double curvature = halved ? A.curvature(p) : dot(p, Ap);
    if (!std::isfinite(curvature)) {
      s.status = SolveStatus::non_finite;
      break;
    }
    if (curvature <= 0) {
      s.status = SolveStatus::negative_curvature;
      break;
    }
    const double alpha = rz / curvature;  // alpha = r'z / p'Ap
    // q(x_old) - q(x) = alpha r'z / 2, with q(x) = x'Ax / 2 - b'x
    const double gain = alpha * rz;
    const bool enough = gain < options.progress * (progress + gain);
    if (halved && (capped || enough)) {
      return last_step(kernels, n, b, work, dot, alpha, curvature, s);
    }
    if (halved) A.finish(p, Ap);
    kernels.add_scaled(T(-alpha), Ap, r, n);  // r = r - alpha A p
    const double next = dot(r, r);
    if (!std::isfinite(next)) {
      s.status = SolveStatus::breakdown;
      lost = true;
      break;
    }
    kernels.add_scaled(T(alpha), p, x, n);  // x = x + alpha p
    rr = next;
    rz_old = rz;
    ++s.iterations;
    s.residual = std::sqrt(rr / norm);
    progress += gain;
    if (enough) break;
  }
  if (norm == 0) s.residual = 0;
  // x'Ax = x'(b - r), or the sum of the gains, which rests on the p staying conjugate.
  s.quadratic = lost ? progress : dot(x, b) - dot(x, r);
  return s;
}

}  // namespace trpo_fast
