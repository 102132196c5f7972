// Drives csrc/cpu without Python, for AddressSanitizer, UndefinedBehaviorSanitizer and
// ThreadSanitizer (`make sanitize`). Every head, odd widths, several threads, weights, masks,
// strided inputs, with and without cached activations. The answers are checked by identities that
// need no oracle: F is symmetric and positive semi-definite, 2 KL(theta, theta + h v) / h^2 ->
// v'Fv, the surrogate's slope along g is |g|^2.
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <random>

#include "cpu/conjugate_gradient.h"
#include "cpu/kernels/dispatch.h"
#include "cpu/network/mlp_forward.h"
#include "cpu/network/sampling.h"
#include "cpu/network/value_fit.h"
#include "cpu/policy/shared_problem.h"
#include "cpu/trust_region.h"
#include "fixture.h"

using namespace trpo_fast;

#include "drive_preconditioner.h"

namespace {

// Every row of three steps: finite log-probabilities, actions within what the environment takes.
template <class T>
void drive_sampling(const Shape& s, const PolicyBatch<T>& batch) {
  const Index steps = 3, envs = s.rows, rows = steps * envs, A = s.actions;
  const Index outputs = mask_width_of(batch.head());
  const bool categorical = facts_of(s.head).categories;
  const SamplingPolicy<T> policy{batch.layers, batch.head_kind, batch.actions,        batch.nvec,
                                 batch.parts,  batch.log_std,   batch.log_std_stride, s.threads};
  const std::vector<float> observations = normal<float>((steps + 1) * envs * s.obs, 2);
  const std::vector<float> mean = normal<float>(s.obs, 1);
  const std::vector<float> scale(std::size_t(s.obs), 0.7f);
  const std::vector<T> noise = normal<T>(rows * A, 1);
  std::vector<double> uniform(std::size_t(rows * A));
  for (double& u : uniform) u = std::uniform_real_distribution<double>(0, 1)(engine);
  std::vector<std::uint8_t> masks(std::size_t(rows * outputs), 1);
  for (Index i = 0; i < rows && s.masked && categorical && s.nvec[0] > 1; ++i) {
    masks[i * outputs + i % s.nvec[0]] = 0;
  }
  std::vector<T> real(std::size_t(rows * A)), env_real(real.size());
  const std::vector<T> low(std::size_t(A), T(-1)), high(std::size_t(A), T(1));
  std::vector<std::int64_t> category(real.size()), env_category(real.size());
  const std::vector<std::int64_t> start(std::size_t(A), 5);
  std::vector<double> log_probs(static_cast<std::size_t>(rows));
  RolloutBuffers<T> b{};
  b.steps = steps, b.envs = envs, b.inputs = s.obs, b.actions = A, b.mask_width = outputs;
  const std::vector<double> wide(observations.begin(), observations.end());
  const std::vector<double> wide_mean(mean.begin(), mean.end()), wide_scale(mean.size(), 0.7);
  b.narrow = {observations.data(), mean.data(), scale.data()};
  b.clip = 3;
  b.normal = s.head == kJoint ? nullptr : noise.data(), b.other = uniform.data();
  b.masks = s.masked && categorical ? masks.data() : nullptr;
  if (categorical) {
    b.category = category.data(), b.env_category = env_category.data(), b.start = start.data();
  } else {
    b.real = real.data(), b.env_real = env_real.data();
    b.low = low.data(), b.high = high.data();
  }
  b.log_prob = log_probs.data();
  const Memory memory(Sampling<T>::workspace_bytes(policy));
  const Sampling<T> sampling(policy, memory.get());
  for (Index t = 0; t < steps; ++t) {
    sampling.step(b, t);
    b.wide = {wide.data(), wide_mean.data(), wide_scale.data()};  // from the second step on
  }
  for (const double value : log_probs) check(std::isfinite(value), "log_prob", value, 0);
  for (const T value : env_real) check(std::fabs(value) <= 1, "clamped", value, 1);
  for (Index i = 0; categorical && i < rows * A; ++i) {
    const std::int64_t choice = category[i];
    check(choice >= 0 && choice < s.nvec[i % A], "category", double(choice), 0);
    check(env_category[i] == choice + 5, "shifted", double(env_category[i]), double(choice + 5));
  }
}

// The products with rounded operands against those without.
template <class T>
void drive_rounded(PolicyBatch<T> batch, const std::vector<T>& v, const std::vector<T>& Fv) {
  for (const int parts : {1, 2}) {
    batch.bf16_parts = parts;
    const Memory memory(PolicyProblem<T>::workspace_bytes(batch));
    PolicyProblem<T> problem(batch, memory.get());
    std::vector<T> found(v.size());
    problem.prepare_fisher();
    problem.fisher_product(v.data(), 0, found.data());
    double error = 0, norm = 0;
    for (std::size_t i = 0; i < v.size(); ++i) {
      error += std::pow(double(found[i]) - double(Fv[i]), 2);
      norm += std::pow(double(Fv[i]), 2);
    }
    check_close("rounded product", std::sqrt(error / norm), 0, parts == 1 ? 2e-2 : 1e-4);
  }
}

template <class T>
void drive(const Shape& shape) {
  Fixture<T> f(shape);
  const Memory memory(PolicyProblem<T>::workspace_bytes(f.batch));
  PolicyProblem<T> problem(f.batch, memory.get());
  const Kernels<T>& kernels = dense_kernels().get<T>();
  const Index n = f.batch.parameters;
  const double tolerance = sizeof(T) == 4 ? 2e-3 : 1e-6;

  std::vector<T> g(n), u = normal<T>(n, 1), v = normal<T>(n, 1), Fu(n), Fv(n), moved(n);
  const double loss = problem.gradient(g.data());
  problem.fisher_product(u.data(), 0, Fu.data());
  problem.fisher_product(v.data(), 0, Fv.data());
  const double uFv = kernels.dot(u.data(), Fv.data(), n);
  const double vFu = kernels.dot(v.data(), Fu.data(), n);
  const double vFv = kernels.dot(v.data(), Fv.data(), n);
  check_close("symmetry of F", uFv, vFu, tolerance);
  check(vFv >= 0, "v'Fv >= 0", vFv, 0);
  if constexpr (sizeof(T) == 4) {
    // Along Fu, which F does not all but cancel: a random vector may be nearly orthogonal to the
    // few directions that a small network moves in.
    std::vector<T> FFu(n);
    problem.fisher_product(Fu.data(), 0, FFu.data());
    drive_rounded<T>(f.batch, Fu, FFu);
  }

  const double length = std::sqrt(kernels.dot(v.data(), v.data(), n));
  const double h = (sizeof(T) == 4 ? 1e-2 : 1e-6) / length;
  for (Index i = 0; i < n; ++i) moved[i] = f.theta[i] + T(h) * v[i];
  const auto at_v = problem.evaluate(moved.data());
  if (!shape.subset) {  // the KL is over all rows, F over half of them
    check_close("2 KL / h^2", 2 * at_v.kl / (h * h), vFv, sizeof(T) == 4 ? 0.2 : 1e-3);
  }
  const double slope = kernels.dot(g.data(), v.data(), n);
  for (Index i = 0; i < n; ++i) moved[i] = f.theta[i] - T(h) * v[i];
  const auto back = problem.evaluate(moved.data());
  check_close("slope of the loss", (back.loss - at_v.loss) / (2 * h), slope,
              sizeof(T) == 4 ? 5e-2 : 1e-4);
  const auto same = problem.evaluate(f.theta.data());
  check_close("loss at theta", same.loss, loss, 1e-6);
  check_close("KL at theta", same.kl, 0, 1e-12);

  std::vector<T> x(n), r(n), p(n), Ap(n);
  const Solution s = conjugate_gradient<T>(
      kernels, n, g.data(), {20, 1e-3, 0}, {x.data(), r.data(), nullptr, p.data(), Ap.data()},
      DampedFisher<T>{problem, 0.1}, [](const T*, T*) {}, [] { return false; });
  check(s.status == SolveStatus::done, "status of the solve", int(s.status), 0);
  check(s.quadratic >= 0, "x'Ax >= 0", s.quadratic, 0);

  std::vector<T> work(static_cast<std::size_t>(5 * n)), candidate(n);
  auto never = [] { return false; };
  const UpdateOptions options{
      Constraint::hard, StepSize::boundary, 0.01, 0.1, 1, 1, 0.8, 0, 10, {10, 1e-4, 0}, 1};
  T* const w = work.data();
  TrustRegion<T, PolicyProblem<T>, decltype(never)> region(problem, nullptr, kernels, n, options,
                                                           never);
  const UpdateResult update = region.update(
      f.theta.data(), {w, {w + n, w + 2 * n, nullptr, w + 3 * n, w + 4 * n}}, candidate.data());
  if (update.status == UpdateStatus::accepted) {
    const auto again = problem.evaluate(candidate.data());
    check(again.kl <= 0.01, "KL of the accepted step", again.kl, 0.01);
    check(again.loss < loss, "loss of the accepted step", again.loss, loss);
  } else {
    check(update.status == UpdateStatus::line_search_failed, "status", int(update.status), 3);
  }

  // One rank of one, and one that leaves.
  for (const bool leaves : {false, true}) {
    std::vector<T> product(std::size_t(n) + 1), other(n);
    std::vector<double> sums(std::size_t(n) + 2), figures(3);
    const RankShare<T> share{
        1, 1, false, product.data(), sums.data(), figures.data(), [](Collective) { return true; }};
    SharedProblem<T> all(problem, share, n, std::nullopt, [leaves] { return leaves; });
    auto ended = [&all] { return all.ended(); };
    TrustRegion<T, SharedProblem<T>, decltype(ended)> shared(all, nullptr, kernels, n, options,
                                                             ended);
    const UpdateResult same_update = shared.update(
        f.theta.data(), {w, {w + n, w + 2 * n, nullptr, w + 3 * n, w + 4 * n}}, other.data());
    check(all.ended() == leaves, "whether a rank left", all.ended(), leaves);
    if (leaves) continue;
    check(same_update.status == update.status, "status", int(same_update.status),
          int(update.status));
    check_close("KL through sums", same_update.kl, update.kl, 1e-2);
  }

  const MatrixView<const T> obs = f.batch.rows.obs;
  std::vector<T> out(std::size_t(obs.rows * f.batch.layers.back().out));
  const Index outputs = f.batch.layers.back().out;
  const Memory packed(MlpForward<T>::workspace_bytes(f.batch.layers, shape.threads));
  const MlpForward<T> forward(f.batch.layers, shape.threads, packed.get());
  forward(obs, {out.data(), obs.rows, outputs, outputs, 1});
  for (const T value : out) check(std::isfinite(value), "forward", value, 0);
  drive_sampling<T>(shape, f.batch);
}

// Adam on a linear target: the error falls, the padding stays zero (or the fit would diverge), and
// what is written is what was fitted.
template <class T>
void drive_fit(Index rows, const std::vector<Index>& hidden, Activation activation, Index batch,
               int threads) {
  const Index inputs = 1 + rows % 19;
  std::vector<Index> widths{inputs};
  widths.insert(widths.end(), hidden.begin(), hidden.end());
  widths.push_back(1);
  std::vector<std::vector<T>> tensors;
  Layers<T> layers[3];
  std::vector<LayerTarget<T>> targets[3];
  for (int which = 0; which < 3; ++which) {
    for (std::size_t l = 0; l + 1 < widths.size(); ++l) {
      const Index in = widths[l], out = widths[l + 1];
      tensors.push_back(normal<T>(in * out, which == 0 ? 1 / std::sqrt(double(in)) : 0));
      T* const weight = tensors.back().data();
      tensors.push_back(std::vector<T>(std::size_t(out), T(0)));
      T* const bias = tensors.back().data();
      const bool last = l + 2 == widths.size();
      layers[which].push_back(
          {weight, in, 1, bias, 1, in, out, last ? Activation::identity : activation, T(0.5)});
      targets[which].push_back({weight, in, 1, bias, 1});
    }
  }
  const std::vector<T> x = normal<T>(rows * inputs, 1);
  std::vector<T> wanted(static_cast<std::size_t>(rows));
  std::vector<std::int64_t> order(static_cast<std::size_t>(rows));
  for (Index r = 0; r < rows; ++r) {
    wanted[r] = 2 + x[r * inputs];
    order[r] = (r * 7919) % rows;
  }
  const Memory memory(ValueFit<T>::workspace_bytes(layers[0], batch, threads));
  ValueFit<T> fit(layers[0], layers[1], layers[2], batch, threads, memory.get());
  const RegressionRows<T> data{
      {x.data(), rows, inputs, inputs, 1}, wanted.data(), order.data(), rows};
  FitFigures first{}, last{};
  for (int epoch = 0; epoch < 20; ++epoch) {
    last = fit.run(data, {1e-2, 0.9, 0.999, 1e-5}, last.steps);
    if (epoch == 0) first = last;
  }
  check(last.refused == 0, "refused rows", double(last.refused), 0);
  check(last.squared_error < first.squared_error, "squared error", last.squared_error,
        first.squared_error);
  const T before = layers[0].back().bias[0];
  fit.write(ValueFit<T>::What::parameters, targets[0]);
  fit.write(ValueFit<T>::What::exp_avg, targets[1]);
  fit.write(ValueFit<T>::What::exp_avg_sq, targets[2]);
  check(layers[0].back().bias[0] != before, "the written bias", layers[0].back().bias[0], before);
  check(layers[2].back().bias[0] > 0, "the written moment", layers[2].back().bias[0], 0);
}

}  // namespace

int main() {
  for (const Index inputs : {Index(1), Index(17), Index(64), Index(130)}) {
    for (const Index out : {Index(1), Index(6), Index(64), Index(193)}) {
      for (int kind = 0; kind < 8; ++kind) {
        drive_preconditioner<float>(inputs, out, kind & 1, kind & 2, kind & 4);
        drive_preconditioner<double>(inputs, out, kind & 1, kind & 2, kind & 4);
      }
    }
  }
  const std::vector<std::vector<Index>> networks{{}, {1}, {64, 64}, {17, 65}, {130}, {3, 3, 3}};
  const Activation activations[] = {Activation::tanh,     Activation::relu, Activation::silu,
                                    Activation::softplus, Activation::elu,  Activation::gelu};
  int i = 0;
  for (const Index rows : {Index(1), Index(95), Index(97), Index(700)}) {
    for (const auto& hidden : networks) {
      for (int kind = 0; kind < Heads::kCount; ++kind, ++i) {
        Shape shape{rows,
                    Index(1 + i % 19),
                    hidden,
                    kind,
                    1 + i % 5,
                    {},
                    activations[i % 6],
                    i % 2 == 0,
                    i % 3 == 0,
                    i % 4 == 0,
                    i % 5 == 0 ? 0 : Index(1) << 20,
                    1 + i % 4};
        complete(shape, i, 70);
        if (kind == 0) {
          drive_fit<float>(rows, hidden, activations[i % 6], 1 + i % 130, 1 + i % 4);
          drive_fit<double>(rows, hidden, activations[i % 6], 128, 1 + i % 4);
        }
        drive<float>(shape);
        drive<double>(shape);
      }
    }
  }
  std::printf("native driver on %s: %d checks, %d failed\n", dense_kernels().isa, checks, failures);
  return failures == 0 ? 0 : 1;
}
