#include "cpu/kernels/slabs.h"
#include "cpu/preconditioner/spd_inverse.h"
#include "python/gil.h"
#include "python/register.h"
#include "python/tensor_arg.h"

namespace trpo_fast {
namespace {

// matrix [n, n]; to [slabs, n, width]
template <class T>
bool inverse(py::handle matrix_arg, double damping, py::handle to_arg, int threads) {
  const Index n = TensorArg(matrix_arg, "matrix", 2).size(0);
  const Slabs slabs(n);
  if (n < 1) throw py::value_error("matrix has no rows");
  if (threads < 1) throw py::value_error("threads must be at least 1");
  const T* const from = contiguous_arg<const T>(matrix_arg, "matrix", {n, n});
  T* const into = contiguous_arg<T>(to_arg, "to", {slabs.count, n, slabs.width});
  const GilReleased released;
  return damped_inverse<T>(from, n, damping, into, threads);
}

}  // namespace

void register_spd_inverse(py::module_& m) {
  m.def("damped_inverse_f32", &inverse<float>, py::arg("matrix"), py::arg("damping"), py::arg("to"),
        py::arg("threads"));
  m.def("damped_inverse_f64", &inverse<double>, py::arg("matrix"), py::arg("damping"),
        py::arg("to"), py::arg("threads"));
}

}  // namespace trpo_fast
