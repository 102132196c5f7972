// The whole update: gradient -> solve -> scale -> line search (Schulman et al. 2015, section 6 and
// appendix C), the same steps as trpo_fast/update/trust_region.py. Every thread of every block
// follows it on the same sums, and so takes the same branches.
#pragma once

#include "common/line_search.h"
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
    if (!std::isfinite(s.slope) || !std::isfinite(s.quadratic)) {
      return end(UpdateStatus::non_finite);
    }
    if (s.quadratic <= 0 || s.slope <= 0) return end(failed_solve(s.status));
    search({norm_, s.slope, s.quadratic, s.square});
  }

  __device__ static void report_solution(const Problem& problem, const Solution& s) {
    problem.report(kSolveStatus, int(s.status));
    problem.report(kIterations, s.iterations);
    problem.report(kResidual, s.residual);
    problem.report(kCurvature, s.quadratic);
  }

 private:
  __device__ void report_start() const {
    for (int figure = 0; figure < kFigures; ++figure) problem_.report(Figure(figure), 0);
    problem_.report(kLossBefore, loss_);
    problem_.report(kLossAfter, loss_);
    problem_.report(kGradientNorm, norm_);
  }

  __device__ void end(UpdateStatus status) const { problem_.report(kStatus, int(status)); }

  // The best acceptable one of the candidates that the line search tries.
  __device__ void search(const Line& line) {
    LineSearch s = line_search(o_, line);
    problem_.report(kExpected, expected_gain(o_, s));
    do {
      problem_.report(kBacktracks, s.tried);
      if (!move(T(s.step))) {
        if (s.tried == 0) return end(UpdateStatus::zero_step);
        break;
      }
      double found[2];
      problem_.evaluate(a_.candidate, found);
      const double loss = found[0] * o_.unit, kl = found[1];
      if (!judge(o_, s, loss_ - loss, kl)) continue;
      problem_.report(kLossAfter, loss);
      problem_.report(kKl, kl);
      problem_.report(kExpected, expected_gain(o_, s));
      problem_.report(kStep, s.step / norm_);
    } while (next(o_, s));
    if (!s.found) {
      return end(s.finite ? UpdateStatus::line_search_failed : UpdateStatus::non_finite);
    }
    if (s.step != s.best) move(T(s.best));  // the same bits as when it was tried
    accept();
    end(UpdateStatus::accepted);
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
