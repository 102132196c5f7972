// One function a concept; module.cpp lists them.
#pragma once

#include <pybind11/pybind11.h>

namespace trpo_fast {

void register_mlp_forward(pybind11::module_& m);
void register_policy_problem(pybind11::module_& m);
void register_sampling(pybind11::module_& m);
void register_spd_inverse(pybind11::module_& m);
void register_value_fit(pybind11::module_& m);
void register_vector_math(pybind11::module_& m);

}  // namespace trpo_fast
