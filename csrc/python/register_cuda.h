// One function a concept; module_cuda.cpp lists them.
#pragma once

#include <pybind11/pybind11.h>

namespace trpo_fast {

void register_cuda_device(pybind11::module_& m);
void register_cuda_forward(pybind11::module_& m);
void register_cuda_gae(pybind11::module_& m);
void register_cuda_policy_problem(pybind11::module_& m);

}  // namespace trpo_fast
