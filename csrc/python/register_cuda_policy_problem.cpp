#include <algorithm>

#include "python/cuda_launch_arg.h"
#include "python/head_arg.h"
#include "python/register_cuda.h"
#include "python/update_options.h"

namespace trpo_fast {
namespace {

using cuda::ProblemArgs;
using cuda::RowSet;
using cuda::Task;

// The views of one update.
template <class T>
class BoundCudaProblem : public CudaLaunchArg<T> {
  using CudaLaunchArg<T>::a_;
  using CudaLaunchArg<T>::tiled_;

 public:
  explicit BoundCudaProblem(const py::kwargs& args) : CudaLaunchArg<T>(args["device"].cast<int>()) {
    this->read_products(args["products"].cast<int>());
    this->read_network(args, args["log_std"].cast<Index>(), args["unused"].cast<Index>(),
                       args["action_dim"].cast<int>());
    a_.parameters = args["parameters"].cast<Index>();
    read_head(args);
    a_.rows = row_set(args, "");
    a_.fisher_is_all = args["fisher_obs"].is_none();
    a_.fisher_rows = a_.fisher_is_all ? a_.rows : row_set(args, "fisher_");
    const Index rows = a_.rows.rows;
    a_.advantages = optional_arg<const T>(args["advantages"], "advantages", {rows});
    a_.old_log_prob = optional_arg<const double>(args["old_log_prob"], "old_log_prob", {rows});
    const py::object actions = args["actions"];
    if (categories_) {
      a_.category_actions =
          optional_arg<const std::int64_t>(actions, "actions", {rows, Index(a_.actions)});
    } else {
      a_.real_actions = optional_arg<const T>(actions, "actions", {rows, Index(a_.actions)});
    }
    a_.kl_new_old = args["kl_new_old"].cast<bool>();
    this->read_plan();
  }

  bool tiled() const { return tiled_; }

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
    m.diagonal = contiguous_arg<const T>(fields[0], "diagonal", {a_.parameters});
  }

  void read_head(const py::kwargs& args) {
    const HeadArg head = HeadArg::of(args, a_.outputs);
    if (head.nvec.size() > std::size_t(cuda::kMaxBlocks)) {
      throw py::value_error("nvec has too many blocks");
    }
    if (head.parts.size() > std::size_t(cuda::kMaxParts)) {
      throw py::value_error("the joint head has too many parts");
    }
    const Index log_std = args["log_std"].cast<Index>();  // how many
    head.require_log_std(log_std != 0);
    if (log_std != head.scales) {
      throw py::value_error("there are " + std::to_string(log_std) + " log stds, the head has " +
                            std::to_string(head.scales));
    }
    a_.head_kind = head.kind;
    a_.actions = int(head.actions);
    a_.scales = int(head.scales);
    a_.shared_metric = head.facts.shared_metric;
    a_.metric_width = int(metric_width_of(head.head(a_.outputs)));
    a_.mask_width = int(head.mask_width);
    a_.part_count = int(head.parts.size());
    std::copy(head.parts.begin(), head.parts.end(), a_.parts);
    categories_ = head.facts.categories;
    std::copy(head.nvec.begin(), head.nvec.end(), a_.nvec);
  }

  RowSet<T> row_set(const py::kwargs& args, const std::string& prefix) const {
    RowSet<T> set = this->observations(args[(prefix + "obs").c_str()]);
    const Index rows = set.rows;
    set.weights = optional_arg<const T>(args[(prefix + "weights").c_str()], "weights", {rows});
    set.weight_sum =
        optional_arg<const double>(args[(prefix + "weight_sum").c_str()], "weight_sum", {1});
    if ((set.weights == nullptr) != (set.weight_sum == nullptr)) {
      throw py::value_error("weights and weight_sum go together");
    }
    set.mask = optional_arg<const std::uint8_t>(args[(prefix + "action_mask").c_str()],
                                                "action_mask", {rows, Index(a_.mask_width)});
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
    a_.vector = optional_arg<const T>(vector, "vector", {a_.parameters});
    a_.result = optional_arg<T>(result, "result", {a_.parameters});
    a_.figures = contiguous_arg<double>(figures, "figures", {cuda::kFigures});
    this->launch(task, stream);
  }

  bool categories_ = false;
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
