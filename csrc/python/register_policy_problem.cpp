#include <chrono>
#include <memory>

#include "../cpu/conjugate_gradient.h"
#include "../cpu/dispatch.h"
#include "../cpu/input_moments.h"
#include "../cpu/kfac.h"
#include "../cpu/kronecker_factors.h"
#include "../cpu/trust_region.h"
#include "gil.h"
#include "register.h"
#include "tensor_arg.h"

namespace trpo_fast {
namespace {

using Clock = std::chrono::steady_clock;
constexpr const char* kWhat = "this policy problem";

// Lets Ctrl-C through during a long solve; the GIL is taken a few times a second only.
class SignalPoll {
 public:
  bool operator()() {
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
  explicit BoundProblem(const py::kwargs& args) {
    const TensorArg obs(args["obs"], "obs", 2);
    rows_ = obs.size(0);
    if (rows_ < 1) throw py::value_error("obs has no rows");
    batch_.layers = layers_arg<T>(py::cast<py::sequence>(args["layers"]), obs.size(1));
    batch_.parameters = args["parameters"].cast<Index>();
    read_offsets(py::cast<py::sequence>(args["offsets"]));
    read_head(args);
    batch_.advantages = vector<T>(args["advantages"], "advantages", rows_);
    batch_.old_log_prob = vector<double>(args["old_log_prob"], "old_log_prob", rows_);
    batch_.rows = row_set(obs, args["weights"], args["action_mask"]);
    batch_.fisher_is_all = args["fisher_obs"].is_none();
    if (!batch_.fisher_is_all) {
      const TensorArg fisher_obs(args["fisher_obs"], "fisher_obs", 2);
      fisher_obs.require_size(1, obs.size(1));
      if (fisher_obs.size(0) < 1) throw py::value_error("fisher_obs has no rows");
      batch_.fisher_rows = row_set(fisher_obs, args["fisher_weights"], args["fisher_action_mask"]);
    }
    read_actions(args["actions"]);
    batch_.kl_new_old = args["kl_new_old"].cast<bool>();
    batch_.threads = args["threads"].cast<int>();
    batch_.bf16_parts = args["bf16_parts"].cast<int>();
    const int most_parts = std::is_same_v<T, float> ? kMaxParts : 0;
    if ((batch_.bf16_parts < 0) || (batch_.bf16_parts > most_parts)) {
      throw py::value_error("bf16_parts must be 0, or for float32 1 or 2");
    }
    batch_.cache_bytes = args["cache_bytes"].cast<Index>();
    if (batch_.threads < 1) throw py::value_error("threads must be at least 1");
    if (batch_.cache_bytes < 0) throw py::value_error("cache_bytes must be at least 0");
  }

  std::size_t workspace_bytes() const { return PolicyProblem<T>::workspace_bytes(batch_); }

  void bind(std::uintptr_t workspace) {
    const Exclusive only(busy_, kWhat);
    problem_ = std::make_unique<PolicyProblem<T>>(batch_, reinterpret_cast<void*>(workspace));
  }

  double gradient(py::handle g) {
    const Exclusive only(busy_, kWhat);
    if (batch_.advantages == nullptr || (!has_actions_)) {
      throw py::value_error("the gradient needs actions and advantages");
    }
    T* const to = flat(g, "g");
    const GilReleased released;
    return problem_->gradient(to);
  }

  void prepare_fisher() {
    const Exclusive only(busy_, kWhat);
    const GilReleased released;
    problem_->prepare_fisher();
  }

  void fisher_product(py::handle v, double damping, py::handle out) {
    const Exclusive only(busy_, kWhat);
    const T* const from = flat(v, "v");
    T* const to = flat(out, "out");
    const GilReleased released;
    problem_->fisher_product(from, damping, to);
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
    std::vector<std::pair<T*, bool>> to;
    for (const py::handle item : targets) {
      if (to.size() == batch_.layers.size()) throw py::value_error("there are too many targets");
      to.emplace_back(nullptr, false);
      if (item.is_none()) continue;
      const auto [A, bias] = item.cast<std::pair<py::object, bool>>();
      to.back() = {square_arg(A, batch_.layers[to.size() - 1].in + (bias ? 1 : 0)), bias};
    }
    const GilReleased released;
    const InputMoments<T> moments(batch_, *problem_, rows, reinterpret_cast<void*>(workspace));
    for (std::size_t l = 0; l < to.size(); ++l) {
      if (to[l].first != nullptr) moments.compute(l, to[l].second, to[l].first);
    }
  }

  std::size_t factor_bytes(Index rows) const {
    if (rows < 1 || rows > rows_) throw py::value_error("rows must lie in 1 .. N");
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
    if (rows < 1 || rows > rows_) throw py::value_error("rows must lie in 1 .. N");
    std::vector<FactorTarget<T>> to;
    for (const py::handle item : targets) {
      const auto parts = item.cast<std::tuple<py::object, bool, py::object>>();
      if (to.size() == batch_.layers.size()) throw py::value_error("there are too many targets");
      const Layer<T>& layer = batch_.layers[to.size()];
      const bool bias = std::get<1>(parts);
      to.push_back({square_arg(std::get<0>(parts), layer.in + (bias ? 1 : 0)), bias,
                    square_arg(std::get<2>(parts), layer.out)});
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
    const auto M = preconditioner_arg(preconditioner);
    T* const z = M ? memory + 3 * n : nullptr;
    SignalPoll poll;
    Solution s;
    {
      const GilReleased released;
      s = conjugate_gradient<T>(
          dense_kernels().get<T>(), n, b, options, {to, memory, z, memory + n, memory + 2 * n},
          DampedFisher<T>{*problem_, damping}, [&](const T* r, T* Mr) { M->apply(r, Mr); },
          [&] { return poll(); });
    }
    poll.rethrow();
    return py::make_tuple(int(s.status), s.iterations, s.residual, s.curvature);
  }

  py::tuple evaluate(py::handle theta) {
    const Exclusive only(busy_, kWhat);
    const T* const from = flat(theta, "theta");
    typename PolicyProblem<T>::Candidate candidate;
    {
      const GilReleased released;
      candidate = problem_->evaluate(from);
    }
    return py::make_tuple(candidate.loss, candidate.kl);
  }

  // loss: None, or what gradient() gave, with g in the first row of the work. (status, loss before,
  // loss after, kl, expected, step, gradient norm, backtracks, solve status, iterations, residual)
  py::tuple update(py::handle theta, py::handle candidate, py::handle work, const py::dict& args,
                   const py::object& preconditioner, std::optional<double> loss) {
    const Exclusive only(busy_, kWhat);
    const T* const from = flat(theta, "theta");
    T* const to = flat(candidate, "candidate");
    T* const memory = work_rows(work, 6);
    const Index n = batch_.parameters;
    const UpdateOptions options = update_options(args);
    const auto M = preconditioner_arg(preconditioner);
    const auto row = [&](Index which) { return memory + which * n; };
    const UpdateWork<T> pieces{row(0), {row(1), row(2), M ? row(5) : nullptr, row(3), row(4)}};
    if (batch_.advantages == nullptr || !has_actions_) {
      throw py::value_error("an update needs actions and advantages");
    }
    SignalPoll poll;
    UpdateResult u;
    {
      const GilReleased released;
      TrustRegion<T, SignalPoll> region(*problem_, M.get(), dense_kernels().get<T>(), n, options,
                                        poll);
      u = region.update(from, pieces, to, loss);
    }
    poll.rethrow();
    return py::make_tuple(int(u.status), u.loss_before, u.loss_after, u.kl, u.expected, u.step,
                          u.gradient_norm, u.backtracks, int(u.solution.status),
                          u.solution.iterations, u.solution.residual);
  }

 private:
  static UpdateOptions update_options(const py::dict& args) {
    const auto number = [&](const char* name) { return args[name].template cast<double>(); };
    return {Constraint(args["constraint"].template cast<int>()),
            number("max_kl"),
            number("damping"),
            number("beta"),
            number("lr"),
            number("backtrack_coeff"),
            number("accept_ratio"),
            args["max_backtracks"].template cast<int>(),
            solve_options(args),
            number("unit")};
  }

  static SolveOptions solve_options(const py::dict& args) {
    const auto number = [&](const char* name) { return args[name].template cast<double>(); };
    return {args["cg_iters"].template cast<int>(), number("cg_tol"), number("cg_progress_tol")};
  }

  // (diagonal [P], blocks, work [size]); a block is (weight offset, bias offset, inputs, outputs,
  // left, right, right transposed or None, scale or None), in slabs but for `left` beside a scale.
  std::unique_ptr<const Preconditioner<T>> preconditioner_arg(const py::object& arg) const {
    if (arg.is_none()) return nullptr;
    const auto parts = arg.cast<std::tuple<py::object, py::sequence, py::object>>();
    std::vector<KroneckerBlock<T>> blocks;
    for (const py::handle item : std::get<1>(parts)) blocks.push_back(block_arg(item));
    const TensorArg work(std::get<2>(parts), "work", 1);
    work.require_size(0, Preconditioner<T>::work_size(blocks));
    work.require_contiguous();
    return std::make_unique<const Preconditioner<T>>(
        vector<T>(std::get<0>(parts), "diagonal", batch_.parameters), batch_.parameters, blocks,
        work.data<T>(), batch_.threads);
  }

  KroneckerBlock<T> block_arg(py::handle item) const {
    const auto parts = item.cast<
        std::tuple<Index, Index, Index, Index, py::object, py::object, py::object, py::object>>();
    const auto [weight, bias, inputs, out, left, right, transposed, scale] = parts;
    require_offset(weight, inputs * out);
    require_offset(bias, out);
    const Index columns = (weight >= 0 ? inputs : 0) + (bias >= 0 ? 1 : 0);
    if (inputs < 0 || out < 1 || columns < 1) throw py::value_error("a block has no entries");
    if (transposed.is_none() != scale.is_none()) throw py::value_error("a block lacks a part");
    return {weight,
            bias,
            inputs,
            columns,
            out,
            scale.is_none() ? in_slabs(left, out, out) : square_arg(left, out),
            in_slabs(right, columns, columns),
            in_slabs(transposed, columns, columns),
            in_slabs(scale, out, columns)};
  }

  // [size, size]; null where None.
  static T* square_arg(const py::object& arg, Index size) {
    if (arg.is_none()) return nullptr;
    const TensorArg matrix(arg, "factor", 2);
    matrix.require_size(0, size);
    matrix.require_size(1, size);
    matrix.require_contiguous();
    return matrix.data<T>();
  }

  // [slabs, rows, width], as slabs.h lays out a matrix [rows, columns]; null where None.
  static const T* in_slabs(const py::object& arg, Index rows, Index columns) {
    if (arg.is_none()) return nullptr;
    const Slabs slabs(columns);
    const TensorArg matrix(arg, "block", 3);
    matrix.require_size(0, slabs.count);
    matrix.require_size(1, rows);
    matrix.require_size(2, slabs.width);
    matrix.require_contiguous();
    return matrix.data<const T>();
  }

  void require_kept(Index rows) const {
    if (rows < 1 || rows > kept_rows()) throw py::value_error("rows must lie in 1 .. kept_rows()");
  }

  // [rows, P], contiguous.
  T* work_rows(py::handle arg, Index rows) const {
    const TensorArg memory(arg, "work", 2);
    memory.require_size(0, rows);
    memory.require_size(1, batch_.parameters);
    memory.require_contiguous();
    return memory.data<T>();
  }

  T* flat(py::handle arg, const char* name) const {
    if (problem_ == nullptr) throw py::value_error("bind() a workspace first");
    const TensorArg vector(arg, name, 1);
    vector.require_size(0, batch_.parameters);
    vector.require_contiguous();
    return vector.data<T>();
  }

  template <class Element>
  static const Element* vector(const py::object& arg, const char* name, Index size) {
    if (arg.is_none()) return nullptr;
    const TensorArg vector(arg, name, 1);
    vector.require_size(0, size);
    vector.require_contiguous();
    return vector.data<const Element>();
  }

  void require_offset(Index offset, Index count) const {
    if (offset < -1 || (offset >= 0 && offset + count > batch_.parameters)) {
      throw py::value_error("a parameter's offset lies outside the flat vector");
    }
  }

  void read_offsets(const py::sequence& arg) {
    for (const py::handle item : arg) {
      const auto pair = item.cast<std::pair<Index, Index>>();
      batch_.offsets.push_back({pair.first, pair.second});
    }
    if (batch_.offsets.size() != batch_.layers.size()) {
      throw py::value_error("offsets and layers differ in number");
    }
    for (std::size_t l = 0; l < batch_.layers.size(); ++l) {
      require_offset(batch_.offsets[l].weight, batch_.layers[l].in * batch_.layers[l].out);
      require_offset(batch_.offsets[l].bias, batch_.layers[l].out);
    }
  }

  void read_head(const py::kwargs& args) {
    const int kind = args["head"].cast<int>();
    if (kind < 0 || kind >= kHeadCount) throw py::value_error("unknown head");
    batch_.head_kind = HeadKind(kind);
    batch_.actions = args["action_dim"].cast<Index>();
    batch_.nvec = args["nvec"].cast<std::vector<Index>>();
    const Index outputs = batch_.layers.back().out;
    Index expected = batch_.actions;
    if (batch_.head_kind == HeadKind::gaussian_state_std) expected *= 2;
    if (categorical()) {
      expected = 0;
      for (const Index n : batch_.nvec) expected += n;
      if (Index(batch_.nvec.size()) != batch_.actions) throw py::value_error("nvec is not [A]");
    }
    if (expected != outputs || batch_.layers.back().activation != Activation::identity) {
      throw py::value_error("the last layer does not fit the head");
    }
    batch_.log_std = nullptr;
    batch_.log_std_stride = 0;
    batch_.log_std_offset = args["log_std_offset"].cast<Index>();
    require_offset(batch_.log_std_offset, batch_.actions);
    if (!args["log_std"].is_none()) {
      const TensorArg log_std(args["log_std"], "log_std", 1);
      log_std.require_size(0, batch_.actions);
      batch_.log_std = log_std.data<const T>();
      batch_.log_std_stride = log_std.stride(0);
    }
    if ((batch_.head_kind == HeadKind::gaussian) != (batch_.log_std != nullptr)) {
      throw py::value_error("log_std belongs to the gaussian head, and only to it");
    }
  }

  bool categorical() const {
    return batch_.head_kind == HeadKind::categorical ||
           batch_.head_kind == HeadKind::multi_categorical;
  }

  void read_actions(const py::object& arg) {
    batch_.first_action = {nullptr, nullptr, 0};
    batch_.action_row_stride = 0;
    has_actions_ = !arg.is_none();
    if (!has_actions_) return;
    const TensorArg actions(arg, "actions", 2);
    actions.require_size(0, rows_);
    actions.require_size(1, batch_.actions);
    batch_.action_row_stride = actions.stride(0);
    batch_.first_action.stride = actions.stride(1);
    if (!categorical()) {
      batch_.first_action.real = actions.data<const T>();
      return;
    }
    batch_.first_action.category = actions.data<const std::int64_t>();
    for (Index row = 0; row < rows_; ++row) {
      for (Index a = 0; a < batch_.actions; ++a) {
        const std::int64_t chosen = batch_.action(row).category[a * actions.stride(1)];
        if (chosen < 0 || chosen >= batch_.nvec[a]) {
          throw py::index_error("actions[" + std::to_string(row) + ", " + std::to_string(a) +
                                "] is " + std::to_string(chosen) + ", outside 0 .. " +
                                std::to_string(batch_.nvec[a] - 1));
        }
      }
    }
  }

  RowSet<T> row_set(const TensorArg& obs, const py::object& weights,
                    const py::object& mask_arg) const {
    const Index outputs = batch_.layers.back().out;
    RowSet<T> set{obs.matrix<const T>(), vector<T>(weights, "weights", obs.size(0)), nullptr,
                  outputs};
    if (mask_arg.is_none()) return set;
    const TensorArg mask(mask_arg, "action_mask", 2);
    mask.require_size(0, obs.size(0));
    mask.require_size(1, outputs);
    mask.require_contiguous();
    set.mask = mask.data<const std::uint8_t>();
    return set;
  }

  Index rows_ = 0;
  bool has_actions_ = false;
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
           py::arg("options"), py::arg("preconditioner"), py::arg("loss"));
}

}  // namespace

void register_policy_problem(py::module_& m) {
  register_problem<float>(m, "PolicyProblemF32");
  register_problem<double>(m, "PolicyProblemF64");
}

}  // namespace trpo_fast
