// One rank's share of a data-parallel batch, and with it the problem of all ranks' rows, as
// conjugate gradients and the trust region see it: every mean is the sum over the ranks of
// share * own mean. Whoever has to leave says so in the next sum, so that all leave together.
#pragma once

#include <functional>
#include <limits>
#include <optional>
#include <utility>

#include "cpu/policy/policy_problem.h"

namespace trpo_fast {

// What happens over all ranks, in place: sums, and rank 0's number or vector for everybody. The
// numbers are part of the Python interface.
enum class Collective : int { product = 0, gradient = 1, figures = 2, number = 3, vector = 4 };

template <class T>
struct RankShare {
  double all, fisher;  // of the sum of weights: of all rows, of the Fisher's; 0: no rows
  bool alike;          // whether the ranks' arithmetic is the same, to the last bit
  T* product;          // [P + 1], the last for who leaves, as in the others
  double* gradient;    // [P + 2]: gradient, loss
  double* figures;     // [3]: loss, KL
  std::function<bool(Collective)> collective;  // false: it failed
};

template <class T>
class SharedProblem {
 public:
  // loss: where own.gradient() has run already, into the g that gradient() will get; leaving: asked
  // before each sum.
  SharedProblem(PolicyProblem<T>& own, const RankShare<T>& share, Index parameters,
                std::optional<double> loss, std::function<bool()> leaving)
      : own_(own), share_(share), n_(parameters), loss_(loss), leaving_(std::move(leaving)) {}

  double gradient(T* g) {
    double* const to = share_.gradient;
    const bool rows = share_.all > 0;
    double loss = 0;
    if (rows) loss = share_.all * (loss_ ? *loss_ : own_.gradient(g));
    for (Index i = 0; i < n_; ++i) to[i] = rows ? share_.all * double(g[i]) : 0;
    to[n_] = loss;
    if (!sum(Collective::gradient, to[n_ + 1])) return kNothing;
    for (Index i = 0; i < n_; ++i) g[i] = T(to[i]);
    return to[n_];
  }

  void fisher_product(const T* v, double damping, T* out) {
    T* const to = share_.product;
    const bool rows = share_.fisher > 0;
    if (rows) own_.fisher_product(v, 0.0, to);
    for (Index i = 0; i < n_; ++i) to[i] = rows ? T(share_.fisher) * to[i] : T(0);
    const bool summed = sum(Collective::product, to[n_]);
    for (Index i = 0; i < n_; ++i) out[i] = summed ? to[i] + T(damping) * v[i] : T(kNothing);
  }

  // A product in two halves would be two collectives.
  bool fisher_halves() const { return false; }
  double damped_quadratic(const T*, double) { return kNothing; }
  void finish_fisher_product(const T*, double, T*) {}

  // theta becomes rank 0's where rounding could have made it another.
  typename PolicyProblem<T>::Candidate evaluate(T* theta) {
    if (!share_.alike && !ended_) {
      std::copy_n(theta, n_, share_.product);
      ended_ = !share_.collective(Collective::vector);
      std::copy_n(share_.product, n_, theta);
    }
    double* const to = share_.figures;
    to[0] = to[1] = 0;
    if (share_.all > 0 && !ended_) {
      const auto own = own_.evaluate(theta);
      to[0] = share_.all * own.loss;
      to[1] = share_.all * own.kl;
    }
    if (!sum(Collective::figures, to[2])) return {kNothing, kNothing};
    return {to[0], to[1]};
  }

  // A number that decides: rank 0's.
  double agreed(double number) {
    if (share_.alike || ended_) return number;
    share_.figures[0] = number;
    ended_ = !share_.collective(Collective::number);
    return share_.figures[0];
  }

  // Whether a rank left, or a collective failed: no number counts any more.
  bool ended() const { return ended_; }

 private:
  static constexpr double kNothing = std::numeric_limits<double>::quiet_NaN();

  template <class Number>
  bool sum(Collective which, Number& leaves) {
    if (ended_) return false;
    leaves = leaving_() ? Number(1) : Number(0);
    ended_ = !share_.collective(which) || leaves != Number(0);
    return !ended_;
  }

  PolicyProblem<T>& own_;
  const RankShare<T>& share_;
  Index n_;
  std::optional<double> loss_;
  std::function<bool()> leaving_;
  bool ended_ = false;
};

}  // namespace trpo_fast
