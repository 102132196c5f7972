#include <algorithm>

#include "cuda/plan.h"
#include "python/gil.h"
#include "python/head_arg.h"
#include "python/register_cuda.h"
#include "python/tensor_arg.h"
#include "python/update_options.h"

namespace trpo_fast {
namespace {

using cuda::ProblemArgs;
using cuda::RowSet;
using cuda::Task;

// The views of one update. Holds device addresses: Python keeps the tensors alive and in place
// meanwhile, and has checked that every one is contiguous on the device.
template <class T>
class BoundCudaProblem {
 public:
  explicit BoundCudaProblem(const py::kwargs& args) : device_(args["device"].cast<int>()) {
    read_network(args);
    read_head(args);
    a_.rows = row_set(args, "");
    a_.fisher_is_all = args["fisher_obs"].is_none();
    a_.fisher_rows = a_.fisher_is_all ? a_.rows : row_set(args, "fisher_");
    const Index rows = a_.rows.rows;
    a_.advantages = read<T>(args["advantages"], "advantages", {rows});
    a_.old_log_prob = read<double>(args["old_log_prob"], "old_log_prob", {rows});
    const py::object actions = args["actions"];
    if (categories_) {
      a_.category_actions = read<std::int64_t>(actions, "actions", {rows, Index(a_.actions)});
    } else {
      a_.real_actions = read<T>(actions, "actions", {rows, Index(a_.actions)});
    }
    a_.kl_new_old = args["kl_new_old"].cast<bool>();
    a_.forward_only = args["forward_only"].cast<bool>();
    read_plan();
    bytes_ = cuda::lay_out(a_, nullptr);
  }

  std::size_t workspace_bytes() const { return bytes_; }
  bool tiled() const { return tiled_; }

  void bind(std::uintptr_t workspace) {
    cuda::lay_out(a_, reinterpret_cast<void*>(workspace));
    bound_ = true;
  }

  void gradient(py::handle g, py::handle figures, std::uintptr_t stream) {
    require_actions("the gradient");
    run(Task::gradient, py::none(), g, figures, stream);
    a_.fisher_ready = true;
  }

  void fisher_product(py::handle v, py::handle out, py::handle figures, std::uintptr_t stream) {
    run(Task::product, v, out, figures, stream);
    a_.fisher_ready = true;
  }

  void solve(py::handle g, py::handle x, py::handle figures, const py::dict& options,
             std::uintptr_t stream) {
    a_.options.damping = options["damping"].template cast<double>();
    a_.options.solve = solve_options(options);
    read_preconditioner(options["preconditioner"]);
    run(Task::solve, g, x, figures, stream);
    a_.fisher_ready = true;
  }

  void forward(py::handle out, std::uintptr_t stream) {
    if (!bound_) throw py::value_error("bind() a workspace first");
    a_.task = Task::forward;
    a_.result = const_cast<T*>(
        read<T>(py::reinterpret_borrow<py::object>(out), "out", {a_.rows.rows, Index(a_.outputs)}));
    const GilReleased released;
    cuda::launch(a_, device_, reinterpret_cast<void*>(stream));
  }

  void evaluate(py::handle theta, py::handle figures, std::uintptr_t stream) {
    require_actions("a candidate");
    run(Task::evaluate, theta, py::none(), figures, stream);
  }

  void update(py::handle candidate, py::handle figures, const py::dict& options,
              std::uintptr_t stream) {
    require_actions("an update");
    a_.options = update_options(options);
    read_preconditioner(options["preconditioner"]);
    run(Task::update, py::none(), candidate, figures, stream);
  }

 private:
  // None, or (diagonal, matrices, (where each layer's start or -1, whether in eigenbases)).
  void read_preconditioner(const py::object& arg) {
    cuda::Preconditioner<T>& m = a_.preconditioner;
    m.diagonal = nullptr;
    if (arg.is_none()) return;
    if (!tiled_) throw py::value_error("a preconditioner needs tiles");
    const auto fields = py::cast<py::tuple>(arg);
    const TensorArg matrices(fields[1], "matrices", 1);
    matrices.require_contiguous();
    const auto layers = fields[2].cast<std::vector<std::tuple<Index, bool>>>();
    if (int(layers.size()) != a_.network.count) throw py::value_error("one entry for every layer");
    for (int l = 0; l < a_.network.count; ++l) {
      const cuda::LayerPlan& layer = a_.network.layers[l];
      const auto [at, eigen] = layers[std::size_t(l)];
      const Index rows = layer.in_rows, columns = layer.out_padded;
      const Index inner = eigen ? columns * columns + rows * columns : 0;
      if (at >= 0 && at + rows * rows + columns * columns + inner > matrices.size(0)) {
        throw py::value_error("a layer's matrices end beyond the tensor");
      }
      m.at[l] = at;
      m.eigen[l] = eigen;
    }
    m.matrices = matrices.data<const T>();
    m.diagonal = read<T>(fields[0], "diagonal", {a_.parameters});
  }

  template <class Element>
  static const Element* read(const py::object& arg, const char* name,
                             std::initializer_list<Index> sizes) {
    if (arg.is_none()) return nullptr;
    const TensorArg tensor(arg, name, int(sizes.size()));
    int dimension = 0;
    for (const Index size : sizes) tensor.require_size(dimension++, size);
    tensor.require_contiguous();
    return tensor.data<const Element>();
  }

  void read_network(const py::kwargs& args) {
    tiled_ = args["tiled"].cast<bool>();
    std::vector<cuda::LayerShape> shapes;
    for (const py::handle item : args["layers"]) {
      const auto fields = item.cast<std::tuple<Index, Index, int, double>>();
      const auto [in, out, activation, parameter] = fields;
      if (activation < 0 || activation >= kActivationCount) {
        throw py::value_error("unknown activation");
      }
      if (in < 1 || out < 1 || (!tiled_ && out > cuda::kPanelWidth) ||
          (!shapes.empty() && in != shapes.back().out)) {
        throw py::value_error("the layers' widths do not fit together or are too large");
      }
      shapes.push_back({in, out, Activation(activation), parameter});
    }
    const Index log_std = args["log_std"].cast<Index>(), unused = args["unused"].cast<Index>();
    a_.network = cuda::network_plan(shapes, log_std, unused, tiled_);
    read_products(args);
    const int actions = args["action_dim"].cast<int>();
    const bool fits = a_.products == cuda::Products::exact
                          ? cuda::fits_panels(a_.network, actions, sizeof(T), limits_)
                          : cuda::fits_tensor_panels(a_.network, actions, limits_, a_.products);
    if (!tiled_ && !fits) {
      tiled_ = true;
      a_.network = cuda::network_plan(shapes, log_std, unused, tiled_);
    }
    a_.parameters = args["parameters"].cast<Index>();
    a_.map = read<int>(args["map"], "map", {a_.network.packed});
    a_.theta = TensorArg(args["theta"], "theta", 1).data<const T>();
  }

  void read_products(const py::kwargs& args) {
    limits_ = cuda::device_limits(device_);
    a_.products = cuda::Products(args["products"].cast<int>());
    if (a_.products == cuda::Products::exact) return;
    if (sizeof(T) != 4) throw py::value_error("reduced precision needs float32");
    if (limits_.capability < 80) {
      throw py::value_error(
          "reduced precision needs a device of compute capability 8.0 or later, this one has " +
          std::to_string(limits_.capability / 10) + "." + std::to_string(limits_.capability % 10));
    }
  }

  void read_plan() {
    if (tiled_) {
      a_.plan = cuda::tiled_plan(a_.network, a_.rows.rows, a_.actions, sizeof(T), limits_,
                                 cuda::tiled_blocks_each<T>(device_, a_.actions));
    } else {
      a_.plan =
          cuda::launch_plan(a_.network, a_.rows.rows, a_.actions, sizeof(T), limits_, a_.products);
    }
  }

  void read_head(const py::kwargs& args) {
    a_.outputs = a_.network.last().out;
    const HeadArg head(args["head"].cast<int>(), args["action_dim"].cast<Index>(),
                       args["nvec"].cast<std::vector<Index>>(), a_.outputs);
    if (head.nvec.size() > std::size_t(cuda::kMaxBlocks)) {
      throw py::value_error("nvec has too many blocks");
    }
    a_.head_kind = head.kind;
    a_.actions = int(head.actions);
    a_.log_std_is_parameter = head.facts.log_std_is_parameter;
    categories_ = head.facts.categories;
    std::copy(head.nvec.begin(), head.nvec.end(), a_.nvec);
  }

  RowSet<T> row_set(const py::kwargs& args, const std::string& prefix) const {
    const TensorArg obs(args[(prefix + "obs").c_str()], "obs", 2);
    obs.require_size(1, a_.network.layers[0].in);
    obs.require_contiguous();
    const Index rows = obs.size(0);
    if (rows < 1) throw py::value_error("obs has no rows");
    RowSet<T> set{};
    set.obs = obs.data<const T>();
    set.rows = rows;
    set.weights = read<T>(args[(prefix + "weights").c_str()], "weights", {rows});
    set.weight_sum = read<double>(args[(prefix + "weight_sum").c_str()], "weight_sum", {1});
    if ((set.weights == nullptr) != (set.weight_sum == nullptr)) {
      throw py::value_error("weights and weight_sum go together");
    }
    set.mask = read<std::uint8_t>(args[(prefix + "action_mask").c_str()], "action_mask",
                                  {rows, Index(a_.outputs)});
    return set;
  }

  void require_actions(const char* what) const {
    const bool actions = a_.real_actions != nullptr || a_.category_actions != nullptr;
    if (a_.advantages == nullptr || !actions) {
      throw py::value_error(std::string(what) + " needs actions and advantages");
    }
  }

  void run(Task task, py::handle vector, py::handle result, py::handle figures,
           std::uintptr_t stream) {
    if (!bound_) throw py::value_error("bind() a workspace first");
    if (a_.forward_only) throw py::value_error("forward_only: no other task can be run");
    const auto flat = [&](py::handle arg, const char* name) {
      return const_cast<T*>(
          read<T>(py::reinterpret_borrow<py::object>(arg), name, {a_.parameters}));
    };
    a_.task = task;
    a_.vector = flat(vector, "vector");
    a_.result = flat(result, "result");
    a_.figures = const_cast<double*>(
        read<double>(py::reinterpret_borrow<py::object>(figures), "figures", {cuda::kFigures}));
    const GilReleased released;
    cuda::launch(a_, device_, reinterpret_cast<void*>(stream));
  }

  int device_;
  cuda::DeviceLimits limits_{};
  bool bound_ = false, tiled_ = false, categories_ = false;
  std::size_t bytes_ = 0;
  ProblemArgs<T> a_{};
};

template <class T>
void register_problem(py::module_& m, const char* name) {
  using Problem = BoundCudaProblem<T>;
  py::class_<Problem>(m, name)
      .def(py::init<const py::kwargs&>())
      .def("workspace_bytes", &Problem::workspace_bytes)
      .def("tiled", &Problem::tiled)
      .def("bind", &Problem::bind, py::arg("workspace"))
      .def("gradient", &Problem::gradient, py::arg("g"), py::arg("figures"), py::arg("stream"))
      .def("fisher_product", &Problem::fisher_product, py::arg("v"), py::arg("out"),
           py::arg("figures"), py::arg("stream"))
      .def("solve", &Problem::solve, py::arg("g"), py::arg("x"), py::arg("figures"),
           py::arg("options"), py::arg("stream"))
      .def("forward", &Problem::forward, py::arg("out"), py::arg("stream"))
      .def("evaluate", &Problem::evaluate, py::arg("theta"), py::arg("figures"), py::arg("stream"))
      .def("update", &Problem::update, py::arg("candidate"), py::arg("figures"), py::arg("options"),
           py::arg("stream"));
}

}  // namespace

void register_cuda_policy_problem(py::module_& m) {
  register_problem<float>(m, "PolicyProblemF32");
  register_problem<double>(m, "PolicyProblemF64");
}

}  // namespace trpo_fast
