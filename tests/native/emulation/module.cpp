// The kernels of _core_cuda as host code, for the parity tests: same interface, host pointers.
#include "cuda_runtime.h"
#include "python/register_cuda.h"

PYBIND11_MODULE(_core_cuda_emulated, m) {
  trpo_fast::register_cuda_device(m);
  trpo_fast::register_cuda_forward(m);
  trpo_fast::register_cuda_gae(m);
  trpo_fast::register_cuda_policy_problem(m);
  m.def("set_order", &emulation::set_order);
  m.def(
      "set_device",
      [](int multiprocessors, int shared_bytes, int major) {
        emulation::device().multiprocessors = multiprocessors;
        emulation::device().shared_bytes = shared_bytes;
        emulation::device().major = major;
      },
      pybind11::arg("multiprocessors"), pybind11::arg("shared_bytes"), pybind11::arg("major") = 9);
  m.def("fail_next_launch", [](int error) { emulation::device().launch_error = error; });
}
