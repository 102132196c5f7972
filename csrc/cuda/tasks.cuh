// What a cooperative launch does over a problem in panels or in tiles: one task, and an update is
// one task.
#pragma once

#include "cuda/trust_region.cuh"

namespace trpo_fast::cuda {

template <class Problem, class T = typename Problem::Element>
__device__ void fisher_task(Problem& problem) {
  const ProblemArgs<T>& a = problem.args;
  const auto& vectors = problem.vectors;
  if (!a.fisher_ready) problem.prepare_fisher();
  T* const packed = a.task == Task::solve ? a.g : a.p;
  vectors.each(
      [&](Index i) { packed[i] = vectors.place(i) >= 0 ? a.vector[vectors.place(i)] : T(0); });
  if (a.task == Task::solve) {
    const Solution s = ConjugateGradient<Problem>(problem).solve();
    TrustRegion<Problem>::report_solution(problem, s);
    vectors.each([&](Index i) {
      if (vectors.place(i) >= 0) a.result[vectors.place(i)] = a.x[i];
    });
    return;
  }
  grid_sync();
  const T* const v = problem.shared_copy(a.p);
  problem.product(v, 0);
  vectors.each_reduced(
      [&](Index i, T sum) { a.result[vectors.place(i)] = vectors.product_element(i, sum, v[i]); });
}

template <class Problem, class T = typename Problem::Element>
__device__ void evaluate_task(Problem& problem) {
  const ProblemArgs<T>& a = problem.args;
  problem.vectors.each([&](Index i) {
    const Index place = problem.vectors.place(i);
    a.candidate[i] = place >= 0 ? a.vector[place] : a.weights[i];
  });
  grid_sync();
  double found[2];
  problem.evaluate(a.candidate, found);
  problem.report(kLossAfter, found[0]);
  problem.report(kKl, found[1]);
}

template <class Problem>
__device__ void run_task(Problem& problem) {
  const auto& a = problem.args;
  problem.prepare();
  switch (a.task) {
    case Task::gradient: {
      double loss = 0, square = 0;
      problem.gradient(loss, square);
      if (!a.fisher_is_all) problem.prepare_fisher();
      return problem.report(kLossBefore, loss);
    }
    case Task::product:
    case Task::solve:
      return fisher_task(problem);
    case Task::evaluate:
      return evaluate_task(problem);
    case Task::forward:
      return problem.forward();
    case Task::update:
      return TrustRegion<Problem>(problem).update();
  }
}

}  // namespace trpo_fast::cuda
