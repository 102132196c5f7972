#include "python/register.h"

PYBIND11_MODULE(_core, m) {
  m.doc() = "Compiled kernels of trpo_fast for the CPU. Use them through trpo_fast.backends.";
  trpo_fast::register_vector_math(m);
  trpo_fast::register_mlp_forward(m);
  trpo_fast::register_policy_problem(m);
  trpo_fast::register_sampling(m);
  trpo_fast::register_spd_inverse(m);
  trpo_fast::register_value_fit(m);
}
