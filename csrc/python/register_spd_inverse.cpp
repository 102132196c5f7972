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
  const TensorArg matrix(matrix_arg, "matrix", 2), to(to_arg, "to", 3);
  const Index n = matrix.size(0);
  const Slabs slabs(n);
  if (n < 1) throw py::value_error("matrix has no rows");
  if (threads < 1) throw py::value_error("threads must be at least 1");
  matrix.require_size(1, n);
  matrix.require_contiguous();
  to.require_size(0, slabs.count);
  to.require_size(1, n);
  to.require_size(2, slabs.width);
  to.require_contiguous();
  const T* const from = matrix.data<const T>();
  T* const into = to.data<T>();
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
