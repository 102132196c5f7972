// Vector functions by themselves: for the tests of their error bounds, and for input checks.
#include <cstring>
#include <utility>
#include <vector>

#include "common/gamma.h"
#include "cpu/kernels/amx.h"
#include "cpu/kernels/dispatch.h"
#include "cpu/kernels/finite.h"
#include "python/gil.h"
#include "python/register.h"
#include "python/tensor_arg.h"

namespace trpo_fast {
namespace {

template <class T>
void activate_flat(int activation, T parameter, py::handle z_arg, py::object slope_arg) {
  const TensorArg z(z_arg, "z", 1);
  if (activation < 0 || activation >= kActivationCount) throw py::value_error("unknown activation");
  if (z.stride(0) != 1 || z.size(0) % kPadding != 0) {
    throw py::value_error("z must be contiguous, its size a multiple of " +
                          std::to_string(kPadding));
  }
  T* slope = nullptr;
  if (!slope_arg.is_none()) {
    const TensorArg s(slope_arg, "slope", 1);
    s.require_size(0, z.size(0));
    s.require_contiguous();
    slope = s.data<T>();
  }
  dense_kernels().get<T>().activate(Activation(activation), parameter, z.data<T>(), slope,
                                    z.size(0));
}

template <class T>
bool all_finite_flat(std::uintptr_t address, Index count) {
  const GilReleased released;
  return all_finite(reinterpret_cast<const T*>(address), count);
}

bool all_finite_as_float_flat(std::uintptr_t address, Index count) {
  const GilReleased released;
  return all_finite_as_float(reinterpret_cast<const double*>(address), count);
}

// A flat vector from or to the (address, entries) of its consecutive blocks; an address of 0 is
// passed over. The GIL is kept: no signal and no other thread sees half of it done.
void copy_blocks(std::uintptr_t flat, const py::list& blocks, std::size_t entry_bytes, bool read) {
  std::vector<std::pair<std::uintptr_t, std::size_t>> places;
  places.reserve(blocks.size());
  for (const py::handle item : blocks) {
    const auto fields = py::cast<py::tuple>(item);
    places.emplace_back(fields[0].cast<std::uintptr_t>(),
                        fields[1].cast<std::size_t>() * entry_bytes);
  }
  for (const auto& [place, bytes] : places) {
    const std::uintptr_t from = read ? place : flat, to = read ? flat : place;
    if (place != 0) {
      std::memcpy(reinterpret_cast<void*>(to), reinterpret_cast<const void*>(from), bytes);
    }
    flat += bytes;
  }
}

void require_positive(double x) {
  if (!(x > 0)) throw py::value_error("the argument is " + std::to_string(x) + ", expected > 0");
}

}  // namespace

void register_vector_math(py::module_& m) {
  m.def(
      "gamma_values",
      [](double x) {
        require_positive(x);
        const GammaValues v = gamma_values(x);
        return py::make_tuple(v.log, v.first, v.second, v.third, v.fourth);
      },
      py::arg("x"));
  m.def(
      "log_gamma_divergence",
      [](double x, double y) {
        require_positive(x);
        require_positive(y);
        return log_gamma_divergence(x, y);
      },
      py::arg("x"), py::arg("y"));
  m.def("activate_f32", activate_flat<float>, py::arg("activation"), py::arg("parameter"),
        py::arg("z"), py::arg("slope"));
  m.def("activate_f64", activate_flat<double>, py::arg("activation"), py::arg("parameter"),
        py::arg("z"), py::arg("slope"));
  m.def("all_finite_f32", all_finite_flat<float>, py::arg("address"), py::arg("count"));
  m.def("all_finite_f64", all_finite_flat<double>, py::arg("address"), py::arg("count"));
  m.def("all_finite_as_f32", all_finite_as_float_flat, py::arg("address"), py::arg("count"));
  m.def("copy_blocks", copy_blocks, py::arg("flat"), py::arg("blocks"), py::arg("entry_bytes"),
        py::arg("read"));
  m.def("isa", [] { return std::string(dense_kernels().isa); });
  m.def("bf16_instruction", [] { return dense_kernels().bf16.instruction; });
  m.def("amx_refusal", [] { return amx_refusal(); });
  m.def("cpu_has_amx", cpu_has_amx);
  m.def("available_isas", [] {
    py::list names;
    for (const std::string& name : available_isas()) names.append(name);
    return names;
  });
}

}  // namespace trpo_fast
