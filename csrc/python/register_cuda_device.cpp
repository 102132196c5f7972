#include <cuda_runtime.h>
#include <pybind11/stl.h>

#include "cuda/plan.h"
#include "python/register_cuda.h"

namespace trpo_fast {
namespace {

namespace py = pybind11;

// Never raises: a machine without a driver has facts too.
py::dict facts() {
  py::dict found;
  int runtime = 0, driver = 0, devices = 0;
  (void)cudaRuntimeGetVersion(&runtime);
  (void)cudaDriverGetVersion(&driver);
  const cudaError_t error = cudaGetDeviceCount(&devices);
  found["runtime"] = runtime;
  found["driver"] = driver;  // 0: none is installed
  found["devices"] = error == cudaSuccess ? devices : 0;
  found["error"] = error == cudaSuccess ? py::object(py::none())
                                        : py::object(py::str(cudaGetErrorString(error)));
  return found;
}

// How a batch would be cut on a device with these limits, in tiles where blocks_each is given;
// needs no device.
py::dict plan(const std::vector<std::tuple<Index, Index, int, double>>& layers, Index log_std,
              Index unused, Index rows, int actions, std::size_t element, int multiprocessors,
              int shared_bytes, int blocks_each, int products) {
  std::vector<cuda::LayerShape> shapes;
  for (const auto& [in, out, activation, parameter] : layers) {
    shapes.push_back({in, out, Activation(activation), parameter});
  }
  const bool tiled = blocks_each > 0;
  const cuda::NetworkPlan network = cuda::network_plan(shapes, log_std, unused, tiled);
  const cuda::DeviceLimits limits{multiprocessors, shared_bytes, 90};
  const cuda::LaunchPlan launch =
      tiled ? cuda::tiled_plan(network, rows, actions, element, limits, blocks_each)
            : cuda::launch_plan(network, rows, actions, element, limits, cuda::Products(products));
  py::dict found;
  found["packed"] = network.packed;
  found["blocks"] = launch.blocks;
  found["panel_rows"] = launch.panel_rows;
  found["partials"] = launch.partials;
  found["chunk_rows"] = launch.chunk_rows;
  found["weights_resident"] = launch.weights_resident;
  found["staged"] = launch.staged;
  found["shared_bytes"] = launch.shared_bytes;
  return found;
}

}  // namespace

void register_cuda_device(py::module_& m) {
  m.def("facts", &facts);
  m.def("device_error", &cuda::device_error, py::arg("device"));
  m.def("plan", &plan, py::arg("layers"), py::arg("log_std"), py::arg("unused"), py::arg("rows"),
        py::arg("actions"), py::arg("element"), py::arg("multiprocessors"), py::arg("shared_bytes"),
        py::arg("blocks_each") = 0, py::arg("products") = 0);
}

}  // namespace trpo_fast
