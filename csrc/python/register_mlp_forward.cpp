#include "../cpu/mlp_forward.h"
#include "register.h"
#include "tensor_arg.h"

namespace trpo_fast {
namespace {

template <class T>
std::size_t workspace_bytes(const py::sequence& layers, Index input_width) {
  return mlp_forward_workspace(layers_arg<T>(layers, input_width));
}

template <class T>
void forward(const py::sequence& layers, py::handle x_arg, py::handle out_arg,
             std::uintptr_t workspace) {
  const TensorArg x(x_arg, "x", 2), out(out_arg, "out", 2);
  MlpForwardArgs<T> args{layers_arg<T>(layers, x.size(1)), x.matrix<const T>(), out.matrix<T>(),
                         reinterpret_cast<void*>(workspace)};
  out.require_size(0, x.size(0));
  out.require_size(1, args.layers.back().out);
  py::gil_scoped_release released;
  mlp_forward(args);
}

}  // namespace

void register_mlp_forward(py::module_& m) {
  m.def("mlp_forward_workspace_f32", workspace_bytes<float>, py::arg("layers"),
        py::arg("input_width"));
  m.def("mlp_forward_workspace_f64", workspace_bytes<double>, py::arg("layers"),
        py::arg("input_width"));
  m.def("mlp_forward_f32", forward<float>, py::arg("layers"), py::arg("x"), py::arg("out"),
        py::arg("workspace"));
  m.def("mlp_forward_f64", forward<double>, py::arg("layers"), py::arg("x"), py::arg("out"),
        py::arg("workspace"));
}

}  // namespace trpo_fast
