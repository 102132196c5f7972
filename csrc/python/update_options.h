// The options of a solve and of an update, as Python's dictionaries hand them over.
#pragma once

#include <pybind11/pybind11.h>

#include "common/update_options.h"

namespace trpo_fast {

inline SolveOptions solve_options(const pybind11::dict& args) {
  const auto number = [&](const char* name) { return args[name].cast<double>(); };
  return {args["cg_iters"].cast<int>(), number("cg_tol"), number("cg_progress_tol")};
}

inline UpdateOptions update_options(const pybind11::dict& args) {
  const auto number = [&](const char* name) { return args[name].cast<double>(); };
  return {Constraint(args["constraint"].cast<int>()),
          StepSize(args["step_size"].cast<int>()),
          number("max_kl"),
          number("damping"),
          number("beta"),
          number("lr"),
          number("backtrack_coeff"),
          number("accept_ratio"),
          args["max_backtracks"].cast<int>(),
          solve_options(args),
          number("unit")};
}

}  // namespace trpo_fast
