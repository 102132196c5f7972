#include <chrono>
#include <memory>

#include "cpu/conjugate_gradient.h"
#include "cpu/kernels/dispatch.h"
#include "cpu/policy/shared_problem.h"
#include "cpu/preconditioner/input_moments.h"
#include "cpu/preconditioner/kfac.h"
#include "cpu/preconditioner/kronecker_factors.h"
#include "cpu/trust_region.h"
#include "python/gil.h"
#include "python/policy_batch_arg.h"
#include "python/rank_share_arg.h"
#include "python/register.h"
#include "python/tensor_arg.h"
#include "python/update_options.h"

namespace trpo_fast {
namespace {

using Clock = std::chrono::steady_clock;
constexpr const char* kWhat = "this policy problem";

// Lets Ctrl-C through during long work; the GIL is taken a few times a second only.
class SignalPoll {
 public:
  bool operator()() {
    if (raised_) return true;
    const Clock::time_point now = Clock::now();
    if (now - last_ < std::chrono::milliseconds(50)) return false;
    last_ = now;
    const GilHeld held;
    raised_ = PyErr_CheckSignals() != 0;
    if (raised_) error_ = std::make_unique<py::error_already_set>();
    return raised_;
  }
  // With the GIL held: raises what the handler raised.
  void rethrow() const {
    if (raised_) throw py::error_already_set(*error_);
  }

 private:
  Clock::time_point last_ = Clock::now();
  bool raised_ = false;
  std::unique_ptr<py::error_already_set> error_;
};

// The views of one update. Holds addresses: Python keeps the tensors alive and in place meanwhile.
template <class T>
class BoundProblem {
 public:
  explicit BoundProblem(const py::kwargs& args)
      : has_actions_(!args["actions"].is_none()), batch_(PolicyBatchArg<T>(args).batch()) {}

  std::size_t workspace_bytes() const { return PolicyProblem<T>::workspace_bytes(batch_); }

  void bind(std::uintptr_t workspace) {
    const Exclusive only(busy_, kWhat);
    problem_ = std::make_unique<PolicyProblem<T>>(batch_, reinterpret_cast<void*>(workspace));
    has_gradient_ = false;
  }

  double gradient(py::handle g) {
    const Exclusive only(busy_, kWhat);
    if (batch_.advantages == nullptr || (!has_actions_)) {
      throw py::value_error("the gradient needs actions and advantages");
    }
    T* const to = flat(g, "g");
    double loss = 0;
    polled([&](SignalPoll&) { loss = problem_->gradient(to); });
    has_gradient_ = true;
    return loss;
  }

  void prepare_fisher() {
    const Exclusive only(busy_, kWhat);
    if (problem_ == nullptr) throw py::value_error("bind() a workspace first");
    polled([&](SignalPoll&) { problem_->prepare_fisher(); });
  }

  void fisher_product(py::handle v, double damping, py::handle out) {
    const Exclusive only(busy_, kWhat);
    const T* const from = flat(v, "v");
    T* const to = flat(out, "out");
    polled([&](SignalPoll&) { problem_->fisher_product(from, damping, to); });
  }

  Index kept_rows() const {
    if (problem_ == nullptr) throw py::value_error("bind() a workspace first");
    return problem_->kept_rows();
  }

  std::size_t moment_bytes(Index rows) const {
    require_kept(rows);
    return InputMoments<T>::workspace_bytes(batch_, rows);
  }

  // targets: for each layer (A, bias?) or None; a workspace of moment_bytes(rows).
  void input_moments(Index rows, const py::sequence& targets, std::uintptr_t workspace) {
    const Exclusive only(busy_, kWhat);
    require_kept(rows);
    std::vector<MomentTarget<T>> to;
    for (const py::handle item : targets) {
      if (to.size() == batch_.layers.size()) throw py::value_error("there are too many targets");
      to.push_back({nullptr, false});
      if (item.is_none()) continue;
      const auto [A, bias] = item.cast<std::pair<py::object, bool>>();
      const Index m = batch_.layers[to.size() - 1].in + (bias ? 1 : 0);
      to.back() = {optional_arg<T>(A, "factor", {m, m}), bias};
    }
    to.resize(batch_.layers.size(), {nullptr, false});
    const GilReleased released;
    const InputMoments<T> moments(batch_, *problem_, rows, reinterpret_cast<void*>(workspace));
    moments.compute(to);
  }

  std::size_t factor_bytes(Index rows) const {
    if (rows < 1 || rows > batch_.rows.obs.rows) throw py::value_error("rows must lie in 1 .. N");
    return KroneckerFactors<T>::workspace_bytes(batch_, rows);
  }

  // signs [rows, outputs] of +-1; targets: for each layer (A or None, bias?, G or None); a
  // workspace of factor_bytes(rows).
  void kronecker_factors(py::handle signs_arg, const py::sequence& targets,
                         std::uintptr_t workspace) {
    const Exclusive only(busy_, kWhat);
    const TensorArg signs(signs_arg, "signs", 2);
    const Index rows = signs.size(0);
    signs.require_size(1, batch_.layers.back().out);
    signs.require_contiguous();
    if (rows < 1 || rows > batch_.rows.obs.rows) throw py::value_error("rows must lie in 1 .. N");
    std::vector<FactorTarget<T>> to;
    for (const py::handle item : targets) {
      const auto parts = item.cast<std::tuple<py::object, bool, py::object>>();
      if (to.size() == batch_.layers.size()) throw py::value_error("there are too many targets");
      const Layer<T>& layer = batch_.layers[to.size()];
      const bool bias = std::get<1>(parts);
      const Index m = layer.in + (bias ? 1 : 0);
      to.push_back({optional_arg<T>(std::get<0>(parts), "factor", {m, m}), bias,
                    optional_arg<T>(std::get<2>(parts), "factor", {layer.out, layer.out})});
    }
    const GilReleased released;
    const KroneckerFactors<T> factors(batch_, rows, reinterpret_cast<void*>(workspace));
    factors.compute(signs.data<const T>(), to);
  }

  // preconditioner: None, or what preconditioner_arg reads.
  py::tuple solve(py::handle g, py::handle x, py::handle work, const py::dict& args,
                  const py::object& preconditioner) {
    const Exclusive only(busy_, kWhat);
    const T* const b = flat(g, "g");
    T* const to = flat(x, "x");
    T* const memory = work_rows(work, 4);
    const Index n = batch_.parameters;
    const auto number = [&](const char* name) { return args[name].template cast<double>(); };
    const double damping = number("damping");
    const SolveOptions options = solve_options(args);
    const auto M = preconditioner_arg<T>(preconditioner, batch_);
    T* const z = M ? memory + 3 * n : nullptr;
    Solution s;
    polled([&](SignalPoll& poll) {
      s = conjugate_gradient<T>(
          dense_kernels().get<T>(), n, b, options, {to, memory, z, memory + n, memory + 2 * n},
          DampedFisher<T>{*problem_, damping}, [&](const T* r, T* Mr) { M->apply(r, Mr); },
          [&] { return poll(); });
    });
    return py::make_tuple(int(s.status), s.iterations, s.residual, s.quadratic);
  }

  py::tuple evaluate(py::handle theta) {
    const Exclusive only(busy_, kWhat);
    const T* const from = flat(theta, "theta");
    // It compares with the outputs and log-probabilities that gradient() keeps.
    if (!has_gradient_) throw py::value_error("gradient() comes before a candidate");
    typename PolicyProblem<T>::Candidate candidate;
    polled([&](SignalPoll&) { candidate = problem_->evaluate(from); });
    return py::make_tuple(candidate.loss, candidate.kl);
  }

  // loss: None, or what gradient() gave, with g in the first row of the work. ranks: None, or what
  // RankShareArg reads. (status, loss before, loss after, kl, expected, step, gradient norm,
  // backtracks, solve status, iterations, residual)
  py::tuple update(py::handle theta, py::handle candidate, py::handle work, const py::dict& args,
                   const py::object& preconditioner, std::optional<double> loss,
                   const py::object& ranks) {
    const Exclusive only(busy_, kWhat);
    const T* const from = flat(theta, "theta");
    T* const to = flat(candidate, "candidate");
    T* const memory = work_rows(work, 6);
    const Index n = batch_.parameters;
    const UpdateOptions options = update_options(args);
    const auto M = preconditioner_arg<T>(preconditioner, batch_);
    const auto row = [&](Index which) { return memory + which * n; };
    const UpdateWork<T> pieces{row(0), {row(1), row(2), M ? row(5) : nullptr, row(3), row(4)}};
    if (batch_.advantages == nullptr || !has_actions_) {
      throw py::value_error("an update needs actions and advantages");
    }
    UpdateResult u;
    if (ranks.is_none()) {
      polled([&](SignalPoll& poll) {
        TrustRegion<T, PolicyProblem<T>, SignalPoll> region(
            *problem_, M.get(), dense_kernels().get<T>(), n, options, poll);
        u = region.update(from, pieces, to, loss);
      });
    } else {
      u = shared_update(from, pieces, to, M.get(), options, loss, RankShareArg<T>(ranks, n));
    }
    return py::make_tuple(int(u.status), u.loss_before, u.loss_after, u.kl, u.expected, u.step,
                          u.gradient_norm, u.backtracks, int(u.solution.status),
                          u.solution.iterations, u.solution.residual);
  }

 private:
  // The same on this rank's share of the rows.
  UpdateResult shared_update(const T* theta, const UpdateWork<T>& work, T* candidate,
                             const Preconditioner<T>* M, const UpdateOptions& options,
                             std::optional<double> loss, const RankShareArg<T>& ranks) {
    UpdateResult u;
    polled([&](SignalPoll& poll) {
      SharedProblem<T> all(*problem_, ranks.share(), batch_.parameters, loss,
                           [&poll] { return poll(); });
      const auto ended = [&all] { return all.ended(); };
      TrustRegion<T, SharedProblem<T>, decltype(ended)> region(all, M, dense_kernels().get<T>(),
                                                               batch_.parameters, options, ended);
      u = region.update(theta, work, candidate);
      if (all.ended()) u.status = UpdateStatus::interrupted;
    });
    ranks.rethrow();
    return u;
  }

  // call(poll) without the GIL, ended early by a signal whose handler raises.
  template <class Call>
  void polled(Call&& call) {
    SignalPoll poll;
    problem_->stop_if([&poll] { return poll(); });
    {
      const GilReleased released;
      call(poll);
    }
    problem_->stop_if(nullptr);
    poll.rethrow();
  }

  void require_kept(Index rows) const {
    if (rows < 1 || rows > kept_rows()) throw py::value_error("rows must lie in 1 .. kept_rows()");
  }

  // [rows, P], contiguous.
  T* work_rows(py::handle arg, Index rows) const {
    return contiguous_arg<T>(arg, "work", {rows, batch_.parameters});
  }

  T* flat(py::handle arg, const char* name) const {
    if (problem_ == nullptr) throw py::value_error("bind() a workspace first");
    return contiguous_arg<T>(arg, name, {batch_.parameters});
  }

  bool has_actions_;
  bool has_gradient_ = false;  // of the workspace that is bound
  PolicyBatch<T> batch_;
  std::unique_ptr<PolicyProblem<T>> problem_;
  std::atomic_flag busy_ = ATOMIC_FLAG_INIT;
};

template <class T>
void register_problem(py::module_& m, const char* name) {
  using Problem = BoundProblem<T>;
  py::class_<Problem>(m, name)
      .def(py::init<const py::kwargs&>())
      .def("workspace_bytes", &Problem::workspace_bytes)
      .def("bind", &Problem::bind, py::arg("workspace"))
      .def("gradient", &Problem::gradient, py::arg("g"))
      .def("prepare_fisher", &Problem::prepare_fisher)
      .def("fisher_product", &Problem::fisher_product, py::arg("v"), py::arg("damping"),
           py::arg("out"))
      .def("kept_rows", &Problem::kept_rows)
      .def("moment_bytes", &Problem::moment_bytes, py::arg("rows"))
      .def("input_moments", &Problem::input_moments, py::arg("rows"), py::arg("targets"),
           py::arg("workspace"))
      .def("factor_bytes", &Problem::factor_bytes, py::arg("rows"))
      .def("kronecker_factors", &Problem::kronecker_factors, py::arg("signs"), py::arg("targets"),
           py::arg("workspace"))
      .def("solve", &Problem::solve, py::arg("g"), py::arg("x"), py::arg("work"),
           py::arg("options"), py::arg("preconditioner"))
      .def("evaluate", &Problem::evaluate, py::arg("theta"))
      .def("update", &Problem::update, py::arg("theta"), py::arg("candidate"), py::arg("work"),
           py::arg("options"), py::arg("preconditioner"), py::arg("loss"), py::arg("ranks"));
}

}  // namespace

void register_policy_problem(py::module_& m) {
  register_problem<float>(m, "PolicyProblemF32");
  register_problem<double>(m, "PolicyProblemF64");
}

}  // namespace trpo_fast
