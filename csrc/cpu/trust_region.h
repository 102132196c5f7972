// The whole update: gradient -> solve -> scale -> line search (Schulman et al. 2015, section 6 and
// appendix C), the same steps as trpo_fast/update/trust_region.py, in one call.
#pragma once

#include <optional>

#include "common/line_search.h"
#include "cpu/conjugate_gradient.h"
#include "cpu/policy/policy_problem.h"
#include "cpu/preconditioner/kfac.h"

namespace trpo_fast {

struct UpdateResult {
  UpdateStatus status;
  double loss_before, loss_after, kl, expected, step;  // the accepted candidate's
  double gradient_norm;
  int backtracks;
  Solution solution;
};

// Memory of one update: P elements each.
template <class T>
struct UpdateWork {
  T* g;
  SolveWork<T> solve;
};

// theta [P]: the parameters; candidate [P]: on acceptance what they become. Problem: PolicyProblem,
// or SharedProblem where several ranks each have a share of the rows.
template <class T, class Problem, class Interrupted>
class TrustRegion {
 public:
  // preconditioner: null, or M^-1 for the work's z.
  TrustRegion(Problem& problem, const Preconditioner<T>* preconditioner, const Kernels<T>& kernels,
              Index parameters, const UpdateOptions& options, Interrupted& interrupted)
      : problem_(problem),
        preconditioner_(preconditioner),
        kernels_(kernels),
        n_(parameters),
        o_(options),
        stop_(interrupted) {}

  // loss: where it is known already, and with it work.g.
  UpdateResult update(const T* theta, const UpdateWork<T>& work, T* candidate,
                      std::optional<double> loss = std::nullopt) {
    UpdateResult& u = result_;
    u.loss_before = u.loss_after = (loss ? *loss : problem_.gradient(work.g)) * o_.unit;
    const double norm = std::sqrt(dot(work.g, work.g));
    u.gradient_norm = norm * o_.unit;
    if (!std::isfinite(u.loss_before) || !std::isfinite(u.gradient_norm)) {
      return rejected(UpdateStatus::non_finite);
    }
    if (norm == 0) return rejected(UpdateStatus::zero_gradient);

    // x solves (F + damping I) x = g / |g|
    for (Index i = 0; i < n_; ++i) work.g[i] = T(double(work.g[i]) / norm);
    SolveOptions solve = o_.solve;
    solve.last_residual = false;
    u.solution = conjugate_gradient<T>(
        kernels_, n_, work.g, solve, work.solve, DampedFisher<T, Problem>{problem_, o_.damping},
        [&](const T* r, T* z) { preconditioner_->apply(r, z); }, stop_);
    if (u.solution.status == SolveStatus::interrupted) return rejected(UpdateStatus::interrupted);
    const double slope = dot(work.g, work.solve.x), quadratic = u.solution.quadratic;
    if (!std::isfinite(slope) || !std::isfinite(quadratic)) {
      return rejected(UpdateStatus::non_finite);
    }
    if (quadratic <= 0 || slope <= 0) return rejected(failed_solve(u.solution.status));
    const double square = dot(work.solve.x, work.solve.x);
    return search(theta, work.solve.x, {u.gradient_norm, slope, quadratic, square}, candidate);
  }

 private:
  // The best acceptable one of the candidates that the line search tries.
  UpdateResult search(const T* theta, const T* x, const Line& line, T* candidate) {
    UpdateResult& u = result_;
    LineSearch s = line_search(o_, line);
    u.expected = expected_gain(o_, s);
    do {
      u.backtracks = s.tried;
      if (!move(theta, x, s.step, candidate)) {
        if (s.tried == 0) return rejected(UpdateStatus::zero_step);
        break;
      }
      if (stop_()) return rejected(UpdateStatus::interrupted);
      const auto found = problem_.evaluate(candidate);
      const double loss = found.loss * o_.unit;
      if (!judge(o_, s, u.loss_before - loss, found.kl)) continue;
      u.loss_after = loss;
      u.kl = found.kl;
      u.expected = expected_gain(o_, s);
      u.step = s.step / u.gradient_norm;
    } while (next(o_, s));
    if (!s.found) {
      return rejected(s.finite ? UpdateStatus::line_search_failed : UpdateStatus::non_finite);
    }
    // The same bits as when it was tried.
    if (s.step != s.best) move(theta, x, s.best, candidate);
    u.status = UpdateStatus::accepted;
    return u;
  }

  double dot(const T* u, const T* v) { return problem_.agreed(kernels_.dot(u, v, n_)); }

  // candidate = theta + step x; whether any element moved.
  bool move(const T* theta, const T* x, double step, T* candidate) {
    bool moved = false;
    for (Index i = 0; i < n_; ++i) {
      candidate[i] = theta[i] + T(step) * x[i];
      moved |= !(candidate[i] == theta[i]);
    }
    return problem_.agreed(moved) != 0;
  }

  UpdateResult rejected(UpdateStatus status) {
    result_.status = status;
    return result_;
  }

  Problem& problem_;
  const Preconditioner<T>* preconditioner_;
  const Kernels<T>& kernels_;
  Index n_;
  const UpdateOptions& o_;
  Interrupted& stop_;
  UpdateResult result_{UpdateStatus::non_finite, 0, 0, 0, 0, 0, 0, 0, {SolveStatus::done, 0, 0, 0}};
};

}  // namespace trpo_fast
