// Preconditioned conjugate gradients on (F + damping I) x = b from x = 0, by the whole grid
// (Hestenes & Stiefel 1952; Nocedal & Wright 2006, algorithms 5.2 and 5.3). Departures from the
// textbook: dot products in double, a stop on the relative residual or on the quadratic model's
// relative progress (Martens 2010, section 4.4, over one iteration), an end at the last good x; and
// p'Ap is taken from the network's outputs, so that an iteration needs two barriers of the grid
// (three where p does not fit shared memory).
#pragma once

#include "cuda/vectors.cuh"

namespace trpo_fast::cuda {

struct Solution {
  SolveStatus status;
  int iterations;
  double residual;   // |r| / |b|
  double quadratic;  // x'Ax
  double slope;      // x'b
  double square;     // x'x
};

template <class T>
__device__ constexpr double rounding() {
  return sizeof(T) == 4 ? 1.1920928955078125e-7 : 2.220446049250313e-16;
}

template <class Problem>
class ConjugateGradient {
  using T = typename Problem::Element;

 public:
  __device__ ConjugateGradient(Problem& problem)
      : problem_(problem), a_(problem.args), v_(problem.vectors) {}

  // b = args.g; x in args.x.
  __device__ __noinline__ Solution solve() {
    const SolveOptions& o = a_.options.solve;
    double rr = start();
    const double norm = rr;
    double rz = first_direction(rr), progress = 0;
    bool lost = false;  // r, and with it x'(b - r)
    Solution s{SolveStatus::done, 0, 1, 0, 0, 0};
    // Below rounding level a residual is noise, and so is what further steps would add.
    const double least = 4 * rounding<T>(), tolerance = o.tolerance > least ? o.tolerance : least;
    const double stop = tolerance * tolerance * norm;
    bool going = rr > stop;
    while (going) {
      if (!std::isfinite(rz) || rz <= 0) {
        s.status = SolveStatus::breakdown;
        break;
      }
      const double curvature = problem_.product(p_, a_.options.damping);
      if (!std::isfinite(curvature)) {
        s.status = SolveStatus::non_finite;
        break;
      }
      if (curvature <= 0) {
        s.status = SolveStatus::negative_curvature;
        break;
      }
      const double alpha = rz / curvature;       // alpha = r'z / p'Ap
      const double next = step_residual(alpha);  // r = r - alpha A p
      if (!std::isfinite(next)) {
        s.status = SolveStatus::breakdown;
        lost = true;
        break;
      }
      rr = next;
      ++s.iterations;
      // q(x_old) - q(x) = alpha r'z / 2, with q(x) = x'Ax / 2 - b'x
      const double gain = alpha * rz;
      progress += gain;
      going = s.iterations < o.iterations && rr > stop && !(gain < o.progress * progress);
      const double next_rz = going ? precondition(rr) : rr;
      step(T(alpha), T(next_rz / rz));  // x = x + alpha p, p = z + (r'z / r_old'z_old) p
      rz = next_rz;
    }
    s.residual = norm > 0 ? std::sqrt(rr / norm) : 0;
    finish(s);
    if (lost) s.quadratic = progress;  // rests on the p staying conjugate
    return s;
  }

 private:
  // x = 0, r = p = b; returns r'r.
  __device__ double start() {
    double rr[1] = {0};
    v_.each([&](Index i) {
      const T b = a_.g[i];
      a_.x[i] = 0;
      a_.r[i] = a_.p[i] = b;
      rr[0] += double(b) * double(b);
    });
    problem_.sums(rr);
    return rr[0];
  }

  __device__ bool preconditioned() const {
    return Problem::kPreconditions && a_.preconditioner.diagonal != nullptr;
  }

  // z = M^-1 r; returns r'z, which without M is r'r.
  __device__ double precondition(double rr) {
    if constexpr (Problem::kPreconditions) {
      if (preconditioned()) return problem_.precondition();
    }
    return rr;
  }

  // p = z; returns r'z.
  __device__ double first_direction(double rr) {
    const double rz = precondition(rr);
    if (preconditioned()) {
      v_.each([&](Index i) { a_.p[i] = a_.z[i]; });
      grid_sync();
    }
    p_ = const_cast<T*>(problem_.shared_copy(a_.p));
    return rz;
  }

  __device__ double step_residual(double alpha) {
    double rr[1] = {0};
    v_.each_reduced([&](Index i, T sum) {
      const T Ap = v_.product_element(i, sum, p_[i]) + T(a_.options.damping) * p_[i];
      const T r = a_.r[i] - T(alpha) * Ap;
      a_.r[i] = r;
      rr[0] += double(r) * double(r);
    });
    problem_.sums(rr);
    return rr[0];
  }

  __device__ void step(T alpha, T beta) {
    v_.each([&](Index i) { a_.x[i] += alpha * p_[i]; });
    const T* const z = preconditioned() ? a_.z : a_.r;
    if (a_.plan.weights_resident) {
      __syncthreads();
      v_.each_in_block([&](Index i) { p_[i] = z[i] + beta * p_[i]; });
      __syncthreads();
    } else {
      v_.each([&](Index i) { p_[i] = z[i] + beta * p_[i]; });
      grid_sync();
    }
  }

  // x'Ax = x'(b - r)
  __device__ void finish(Solution& s) {
    double dots[3] = {0, 0, 0};
    v_.each([&](Index i) {
      dots[0] += double(a_.x[i]) * double(a_.g[i]);
      dots[1] += double(a_.x[i]) * double(a_.r[i]);
      dots[2] += double(a_.x[i]) * double(a_.x[i]);
    });
    problem_.sums(dots);
    s.slope = dots[0];
    s.quadratic = dots[0] - dots[1];
    s.square = dots[2];
  }

  Problem& problem_;
  const ProblemArgs<T>& a_;
  const Vectors<T>& v_;
  T* p_ = nullptr;
};

}  // namespace trpo_fast::cuda
