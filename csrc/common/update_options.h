// What steers conjugate gradients and an update, and how both end: the same on every device. The
// numbers are part of the Python interface.
#pragma once

#include "common/host_device.h"

namespace trpo_fast {

enum class SolveStatus : int {
  done = 0,
  negative_curvature = 1,
  breakdown = 2,
  non_finite = 3,
  interrupted = 4,
};

enum class UpdateStatus : int {
  accepted = 0,
  zero_gradient = 1,
  zero_step = 2,
  line_search_failed = 3,
  negative_curvature = 4,
  breakdown = 5,
  non_finite = 6,
  interrupted = 7,
};

enum class Constraint : int { hard = 0, penalty = 1, none = 2 };
enum class StepSize : int { damped = 0, boundary = 1 };

struct SolveOptions {
  int iterations;    // cap
  double tolerance;  // on |r| / |b|; 0: run all
  double progress;   // on an iteration's share of what the quadratic model has fallen; 0: run all
  // Whether the residual of the last iterate is wanted. Else a solve that its cap or its progress
  // ends may stop at p'Ap, half a product earlier, and the residual is the iterate's before.
  bool last_residual = true;
};

struct UpdateOptions {
  Constraint constraint;
  StepSize step_size;
  double max_kl, damping, beta, lr, backtrack_coeff, accept_ratio;
  int max_backtracks;
  SolveOptions solve;
  double unit;  // a power of two that every loss is multiplied by
};

// How an update ends whose solve found no ascent.
TRPO_FAST_HOST_DEVICE UpdateStatus failed_solve(SolveStatus status) {
  if (status == SolveStatus::negative_curvature) return UpdateStatus::negative_curvature;
  if (status == SolveStatus::non_finite) return UpdateStatus::non_finite;
  return UpdateStatus::breakdown;
}

}  // namespace trpo_fast
