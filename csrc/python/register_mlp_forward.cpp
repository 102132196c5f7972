#include <memory>

#include "cpu/network/mlp_forward.h"
#include "python/gil.h"
#include "python/register.h"
#include "python/tensor_arg.h"

namespace trpo_fast {
namespace {

// Views of a network's parameters, which are read when a workspace is bound and not afterwards.
template <class T>
class BoundForward {
 public:
  BoundForward(const py::sequence& layers, Index input_width, int threads)
      : layers_(layers_arg<T>(layers, input_width)), threads_(threads) {
    if (threads < 1) throw py::value_error("threads must be at least 1");
  }

  std::size_t workspace_bytes() const { return MlpForward<T>::workspace_bytes(layers_, threads_); }

  void bind(std::uintptr_t workspace) {
    const Exclusive only(busy_, "this network's forward pass");
    forward_ =
        std::make_unique<MlpForward<T>>(layers_, threads_, reinterpret_cast<void*>(workspace));
  }

  void call(py::handle x_arg, py::handle out_arg) {
    const Exclusive only(busy_, "this network's forward pass");
    if (forward_ == nullptr) throw py::value_error("bind() a workspace first");
    const TensorArg x(x_arg, "x", 2), out(out_arg, "out", 2);
    x.require_size(1, layers_.front().in);
    out.require_size(0, x.size(0));
    out.require_size(1, layers_.back().out);
    const GilReleased released;
    (*forward_)(x.matrix<const T>(), out.matrix<T>());
  }

 private:
  Layers<T> layers_;
  int threads_;
  std::unique_ptr<MlpForward<T>> forward_;
  std::atomic_flag busy_ = ATOMIC_FLAG_INIT;
};

template <class T>
void register_forward(py::module_& m, const char* name) {
  using Forward = BoundForward<T>;
  py::class_<Forward>(m, name)
      .def(py::init<const py::sequence&, Index, int>(), py::arg("layers"), py::arg("input_width"),
           py::arg("threads"))
      .def("workspace_bytes", &Forward::workspace_bytes)
      .def("bind", &Forward::bind, py::arg("workspace"))
      .def("__call__", &Forward::call, py::arg("x"), py::arg("out"));
}

}  // namespace

void register_mlp_forward(py::module_& m) {
  register_forward<float>(m, "MlpForwardF32");
  register_forward<double>(m, "MlpForwardF64");
}

}  // namespace trpo_fast
