#include "cuda/gae.h"
#include "python/gil.h"
#include "python/register_cuda.h"
#include "python/tensor_arg.h"

namespace trpo_fast {
namespace {

struct Shape {
  Index steps, envs;
};

// A contiguous [steps, envs]; null for None.
template <class Element>
Element* matrix(py::handle arg, const char* name, const Shape& shape) {
  if (arg.is_none()) return nullptr;
  const TensorArg tensor(arg, name, 2);
  tensor.require_size(0, shape.steps);
  tensor.require_size(1, shape.envs);
  tensor.require_contiguous();
  return tensor.data<Element>();
}

template <class T>
void gae(py::handle rewards, py::handle values, py::handle terminated, py::handle truncated,
         py::handle last_values, py::handle final_values, py::handle advantages, py::handle returns,
         double gamma, double lam, int device, std::uintptr_t stream) {
  const TensorArg first(rewards, "rewards", 2);
  const Shape shape{first.size(0), first.size(1)};
  const TensorArg last(last_values, "last_values", 1);
  last.require_size(0, shape.envs);
  last.require_contiguous();
  const cuda::GaeArgs<T> args{matrix<const T>(rewards, "rewards", shape),
                              matrix<const T>(values, "values", shape),
                              matrix<const std::uint8_t>(terminated, "terminated", shape),
                              matrix<const std::uint8_t>(truncated, "truncated", shape),
                              last.data<const T>(),
                              matrix<const T>(final_values, "final_values", shape),
                              matrix<T>(advantages, "advantages", shape),
                              matrix<T>(returns, "returns", shape),
                              shape.steps,
                              shape.envs,
                              gamma,
                              gamma * lam};
  const GilReleased released;
  cuda::launch(args, device, reinterpret_cast<void*>(stream));
}

template <class T>
void register_gae(py::module_& m, const char* name) {
  m.def(name, &gae<T>, py::arg("rewards"), py::arg("values"), py::arg("terminated"),
        py::arg("truncated"), py::arg("last_values"), py::arg("final_values"),
        py::arg("advantages"), py::arg("returns"), py::arg("gamma"), py::arg("lam"),
        py::arg("device"), py::arg("stream"));
}

}  // namespace

void register_cuda_gae(py::module_& m) {
  register_gae<float>(m, "gae_f32");
  register_gae<double>(m, "gae_f64");
}

}  // namespace trpo_fast
