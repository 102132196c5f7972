#include "python/register_cuda.h"

PYBIND11_MODULE(_core_cuda, m) {
  m.doc() = "Compiled kernels of trpo_fast for CUDA. Use them through trpo_fast.backends.";
  m.attr("architectures") = TRPO_FAST_CUDA_ARCHITECTURES;  // as CMake names them
  trpo_fast::register_cuda_device(m);
  trpo_fast::register_cuda_forward(m);
  trpo_fast::register_cuda_gae(m);
  trpo_fast::register_cuda_policy_problem(m);
}
