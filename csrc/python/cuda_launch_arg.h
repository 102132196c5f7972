// What every launch of the CUDA kernels takes from Python: a network, rows, a workspace. Device
// addresses: Python keeps the tensors alive and in place meanwhile, and has checked that every one
// is contiguous on the device.
#pragma once

#include <string>
#include <tuple>
#include <vector>

#include "cuda/plan.h"
#include "python/gil.h"
#include "python/tensor_arg.h"

namespace trpo_fast {

template <class T>
class CudaLaunchArg {
 public:
  std::size_t workspace_bytes() const { return bytes_; }

  void bind(std::uintptr_t workspace) {
    cuda::lay_out(a_, reinterpret_cast<void*>(workspace));
    bound_ = true;
  }

 protected:
  explicit CudaLaunchArg(int device) : device_(device), limits_(cuda::device_limits(device)) {}

  void read_products(int products) {
    a_.products = cuda::Products(products);
    if (a_.products == cuda::Products::exact) return;
    if (sizeof(T) != 4) throw py::value_error("reduced precision needs float32");
    if (limits_.capability < 80) {
      throw py::value_error(
          "reduced precision needs a device of compute capability 8.0 or later, this one has " +
          std::to_string(limits_.capability / 10) + "." + std::to_string(limits_.capability % 10));
    }
  }

  // actions: of the head, or 0. Before it: read_products.
  void read_network(const py::kwargs& args, Index log_std, Index unused, int actions) {
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
    a_.network = cuda::network_plan(shapes, log_std, unused, tiled_);
    const bool fits = a_.products == cuda::Products::exact
                          ? cuda::fits_panels(a_.network, actions, sizeof(T), limits_)
                          : cuda::fits_tensor_panels(a_.network, actions, limits_, a_.products);
    if (!tiled_ && !fits) {
      tiled_ = true;
      a_.network = cuda::network_plan(shapes, log_std, unused, tiled_);
    }
    a_.outputs = a_.network.last().out;
    a_.map = contiguous_arg<const int>(args["map"], "map", {a_.network.packed});
    a_.theta = TensorArg(args["theta"], "theta", 1).data<const T>();
  }

  // [rows, inputs] of a network that was read.
  cuda::RowSet<T> observations(const py::object& arg) const {
    const TensorArg obs(arg, "obs", 2);
    obs.require_size(1, a_.network.layers[0].in);
    obs.require_contiguous();
    if (obs.size(0) < 1) throw py::value_error("obs has no rows");
    cuda::RowSet<T> set{};
    set.obs = obs.data<const T>();
    set.rows = obs.size(0);
    return set;
  }

  // Of everything that was read: how the launch is cut, and how much memory it takes.
  void read_plan() {
    if (tiled_) {
      a_.plan = cuda::tiled_plan(a_.network, a_.rows.rows, a_.actions, sizeof(T), limits_,
                                 cuda::tiled_blocks_each<T>(device_, a_.actions));
    } else {
      a_.plan =
          cuda::launch_plan(a_.network, a_.rows.rows, a_.actions, sizeof(T), limits_, a_.products);
    }
    bytes_ = cuda::lay_out(a_, nullptr);
  }

  void launch(cuda::Task task, std::uintptr_t stream) {
    if (!bound_) throw py::value_error("bind() a workspace first");
    a_.task = task;
    const GilReleased released;
    cuda::launch(a_, device_, reinterpret_cast<void*>(stream));
  }

  int device_;
  cuda::DeviceLimits limits_;
  bool bound_ = false, tiled_ = false;
  std::size_t bytes_ = 0;
  cuda::ProblemArgs<T> a_{};
};

}  // namespace trpo_fast
