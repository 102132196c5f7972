// The whole update: gradient -> solve -> scale -> line search (Schulman et al. 2015, section 6 and
// appendix C), the same steps as trpo_fast/update/trust_region.py. Every thread of every block follows it
// on the same sums, and so takes the same branches.
#pragma once

#include "cuda/conjugate_gradient.cuh"

namespace trpo_fast::cuda {

template <class Problem>
class TrustRegion {
  using T = typename Problem::Element;

 public:
  __device__ TrustRegion(Problem& problem)
      : problem_(problem), a_(problem.args), o_(problem.args.options) {}

  __device__ void update() {
    double square = 0;
    problem_.gradient(loss_, square);
    if (!a_.fisher_is_all) problem_.prepare_fisher();
    loss_ *= o_.unit;
    const double norm = std::sqrt(square);
    norm_ = norm * o_.unit;
    report_start();
    if (!std::isfinite(loss_) || !std::isfinite(norm_)) return end(UpdateStatus::non_finite);
    if (norm == 0) return end(UpdateStatus::zero_gradient);

    // x solves (F + damping I) x = g / |g|
    problem_.vectors.each([&](Index i) { a_.g[i] = T(double(a_.g[i]) / norm); });
    const Solution s = ConjugateGradient<Problem>(problem_).solve();
    report_solution(problem_, s);
    if (!std::isfinite(s.slope) || !std::isfinite(s.curvature)) {
      return end(UpdateStatus::non_finite);
    }
    if (s.curvature <= 0 || s.slope <= 0) return end(failed_solve(s.status));
    search(o_.lr * step_scale(o_, norm_, s.curvature), s.slope, s.curvature);
  }

  __device__ static void report_solution(const Problem& problem, const Solution& s) {
    problem.report(kSolveStatus, int(s.status));
    problem.report(kIterations, s.iterations);
    problem.report(kResidual, s.residual);
    problem.report(kCurvature, s.curvature);
  }

 private:
  __device__ void report_start() const {
    for (int figure = 0; figure < kFigures; ++figure) problem_.report(Figure(figure), 0);
    problem_.report(kLossBefore, loss_);
    problem_.report(kLossAfter, loss_);
    problem_.report(kGradientNorm, norm_);
  }

  __device__ void end(UpdateStatus status) const { problem_.report(kStatus, int(status)); }

  // Candidates theta + size * backtrack_coeff^j * x, the first acceptable one taken.
  __device__ void search(double size, double slope, double quadratic) {
    bool finite = false;
    const int candidates = o_.constraint == Constraint::none ? 1 : o_.max_backtracks + 1;
    for (int j = 0; j < candidates; ++j) {
      const double step = size * std::pow(o_.backtrack_coeff, double(j));
      const double expected = expected_gain(o_, norm_, step, slope, quadratic);
      problem_.report(kBacktracks, j);
      if (j == 0) problem_.report(kExpected, expected);
      if (!move(T(step))) {
        if (j == 0) return end(UpdateStatus::zero_step);
        break;
      }
      double found[2];
      problem_.evaluate(a_.candidate, found);
      const double loss = found[0] * o_.unit, kl = found[1];
      if (!std::isfinite(loss) || !std::isfinite(kl)) continue;
      finite = true;
      if (!acceptable(o_, loss_ - loss, kl, expected)) continue;
      accept();
      problem_.report(kLossAfter, loss);
      problem_.report(kKl, kl);
      problem_.report(kExpected, expected);
      problem_.report(kStep, step / norm_);
      return end(UpdateStatus::accepted);
    }
    end(finite ? UpdateStatus::line_search_failed : UpdateStatus::non_finite);
  }

  // candidate = theta + step x; whether any element moved.
  __device__ bool move(T step) {
    double moved[1] = {0};
    problem_.vectors.each([&](Index i) {
      const T from = a_.weights[i];
      const T to = problem_.vectors.place(i) >= 0 ? from + step * a_.x[i] : from;
      a_.candidate[i] = to;
      if (!(to == from)) moved[0] += 1;
    });
    problem_.sums(moved);
    return moved[0] > 0;
  }

  __device__ void accept() const {
    problem_.vectors.each([&](Index i) {
      const Index place = problem_.vectors.place(i);
      if (place >= 0) a_.result[place] = a_.candidate[i];
    });
  }

  Problem& problem_;
  const ProblemArgs<T>& a_;
  const UpdateOptions& o_;
  double loss_ = 0, norm_ = 0;
};

}  // namespace trpo_fast::cuda
