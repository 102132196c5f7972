#include "python/cuda_launch_arg.h"
#include "python/register_cuda.h"

namespace trpo_fast {
namespace {

// The forward pass of a network over rows.
template <class T>
class BoundCudaForward : public CudaLaunchArg<T> {
  using CudaLaunchArg<T>::a_;

 public:
  explicit BoundCudaForward(const py::kwargs& args) : CudaLaunchArg<T>(args["device"].cast<int>()) {
    this->read_network(args, 0, 0, 0);
    a_.rows = this->observations(args["obs"]);
    a_.forward_only = true;
    this->read_plan();
  }

  void forward(py::handle out, std::uintptr_t stream) {
    a_.result = contiguous_arg<T>(out, "out", {a_.rows.rows, Index(a_.outputs)});
    this->launch(cuda::Task::forward, stream);
  }
};

template <class T>
void register_forward(py::module_& m, const char* name) {
  using Forward = BoundCudaForward<T>;
  py::class_<Forward>(m, name)
      .def(py::init<const py::kwargs&>())
      .def("workspace_bytes", &Forward::workspace_bytes)
      .def("bind", &Forward::bind, py::arg("workspace"))
      .def("forward", &Forward::forward, py::arg("out"), py::arg("stream"));
}

}  // namespace

void register_cuda_forward(py::module_& m) {
  register_forward<float>(m, "ForwardF32");
  register_forward<double>(m, "ForwardF64");
}

}  // namespace trpo_fast
