#include <memory>

#include "cpu/network/value_fit.h"
#include "python/gil.h"
#include "python/register.h"
#include "python/tensor_arg.h"

namespace trpo_fast {
namespace {

constexpr const char* kWhat = "this value fit";

// Where to write a network's parameters, or a moment of them; checked by layers_arg before.
template <class T>
std::vector<LayerTarget<T>> targets_arg(const py::sequence& arg) {
  std::vector<LayerTarget<T>> targets;
  for (const py::handle item : arg) {
    const auto fields = py::cast<py::tuple>(item);
    const TensorArg weight(fields[0], "weight", 2);
    const auto bias = strided_arg<T>(fields[1], "bias", weight.size(0));
    targets.push_back(
        {weight.data<T>(), weight.stride(0), weight.stride(1), bias.data, bias.stride});
  }
  return targets;
}

// A network's parameters and Adam's moments of them, read at bind() and written by write_back().
template <class T>
class BoundFit {
  using Fit = ValueFit<T>;

 public:
  BoundFit(const py::sequence& parameters, const py::sequence& exp_avg,
           const py::sequence& exp_avg_sq, Index input_width, Index batch_rows, int threads)
      : batch_rows_(batch_rows), threads_(threads) {
    if (threads < 1 || batch_rows < 1) {
      throw py::value_error("threads and batch_rows must be at least 1");
    }
    for (const py::sequence* arg : {&parameters, &exp_avg, &exp_avg_sq}) {
      layers_.push_back(layers_arg<T>(*arg, input_width));
      targets_.push_back(targets_arg<T>(*arg));
      for (std::size_t l = 0; l < layers_.back().size(); ++l) {
        if (layers_.back().size() != layers_[0].size() ||
            layers_.back()[l].out != layers_[0][l].out ||
            (layers_.back()[l].bias == nullptr) != (layers_[0][l].bias == nullptr)) {
          throw py::value_error("Adam's moments have other shapes than the parameters");
        }
      }
    }
    if (layers_[0].back().out != 1) throw py::value_error("a value function has one output");
  }

  std::size_t workspace_bytes() const {
    return Fit::workspace_bytes(layers_[0], batch_rows_, threads_);
  }

  void bind(std::uintptr_t workspace) {
    const Exclusive only(busy_, kWhat);
    fit_ = std::make_unique<Fit>(layers_[0], layers_[1], layers_[2], batch_rows_, threads_,
                                 reinterpret_cast<void*>(workspace));
  }

  py::tuple run(py::handle x_arg, py::handle targets_arg, py::handle order_arg, double lr,
                double beta1, double beta2, double eps, std::int64_t steps) {
    const Exclusive only(busy_, kWhat);
    if (fit_ == nullptr) throw py::value_error("bind() a workspace first");
    const TensorArg x(x_arg, "x", 2), targets(targets_arg, "targets", 1);
    const TensorArg order(order_arg, "order", 1);
    x.require_size(1, layers_[0].front().in);
    targets.require_size(0, x.size(0));
    targets.require_contiguous();
    order.require_contiguous();
    const RegressionRows<T> rows{x.matrix<const T>(), targets.data<const T>(),
                                 order.data<const std::int64_t>(), order.size(0)};
    for (Index i = 0; i < rows.count; ++i) {
      if (rows.order[i] < 0 || rows.order[i] >= x.size(0)) {
        throw py::index_error("order names row " + std::to_string(rows.order[i]) + " of " +
                              std::to_string(x.size(0)));
      }
    }
    FitFigures figures;
    {
      const GilReleased released;
      figures = fit_->run(rows, {lr, beta1, beta2, eps}, steps);
    }
    return py::make_tuple(figures.squared_error, figures.refused, figures.steps);
  }

  void write_back() {
    const Exclusive only(busy_, kWhat);
    if (fit_ == nullptr) throw py::value_error("bind() a workspace first");
    fit_->write(Fit::What::parameters, targets_[0]);
    fit_->write(Fit::What::exp_avg, targets_[1]);
    fit_->write(Fit::What::exp_avg_sq, targets_[2]);
  }

 private:
  std::vector<Layers<T>> layers_;  // parameters, exp_avg, exp_avg_sq
  std::vector<std::vector<LayerTarget<T>>> targets_;
  Index batch_rows_;
  int threads_;
  std::unique_ptr<Fit> fit_;
  std::atomic_flag busy_ = ATOMIC_FLAG_INIT;
};

template <class T>
void register_fit(py::module_& m, const char* name) {
  using Fit = BoundFit<T>;
  py::class_<Fit>(m, name)
      .def(py::init<const py::sequence&, const py::sequence&, const py::sequence&, Index, Index,
                    int>(),
           py::arg("parameters"), py::arg("exp_avg"), py::arg("exp_avg_sq"), py::arg("input_width"),
           py::arg("batch_rows"), py::arg("threads"))
      .def("workspace_bytes", &Fit::workspace_bytes)
      .def("bind", &Fit::bind, py::arg("workspace"))
      .def("run", &Fit::run, py::arg("x"), py::arg("targets"), py::arg("order"), py::arg("lr"),
           py::arg("beta1"), py::arg("beta2"), py::arg("eps"), py::arg("steps"))
      .def("write_back", &Fit::write_back);
}

}  // namespace

void register_value_fit(py::module_& m) {
  register_fit<float>(m, "ValueFitF32");
  register_fit<double>(m, "ValueFitF64");
}

}  // namespace trpo_fast
