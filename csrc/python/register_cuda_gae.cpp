#include "cuda/gae.h"
#include "python/gil.h"
#include "python/register_cuda.h"
#include "python/tensor_arg.h"

namespace trpo_fast {
namespace {

template <class T>
void gae(py::handle rewards, py::handle values, py::handle terminated, py::handle truncated,
         py::handle last_values, py::handle final_values, py::handle advantages, py::handle returns,
         double gamma, double lam, int device, std::uintptr_t stream) {
  const TensorArg first(rewards, "rewards", 2);
  const Index steps = first.size(0), envs = first.size(1);
  const cuda::GaeArgs<T> args{
      contiguous_arg<const T>(rewards, "rewards", {steps, envs}),
      contiguous_arg<const T>(values, "values", {steps, envs}),
      contiguous_arg<const std::uint8_t>(terminated, "terminated", {steps, envs}),
      contiguous_arg<const std::uint8_t>(truncated, "truncated", {steps, envs}),
      contiguous_arg<const T>(last_values, "last_values", {envs}),
      optional_arg<const T>(final_values, "final_values", {steps, envs}),
      contiguous_arg<T>(advantages, "advantages", {steps, envs}),
      contiguous_arg<T>(returns, "returns", {steps, envs}),
      steps,
      envs,
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
