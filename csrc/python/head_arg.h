// A policy head as Python passes it, checked against the columns of the last layer.
#pragma once

#include <string>
#include <utility>
#include <vector>

#include "common/heads.h"
#include "python/tensor_arg.h"

namespace trpo_fast {

struct HeadArg {
  int kind;
  Index actions;
  std::vector<Index> nvec;
  HeadFacts facts;

  // action_dim: of heads whose actions are no categories; nvec: of the others.
  HeadArg(int number, Index action_dim, std::vector<Index> sizes, Index outputs)
      : kind(number), actions(action_dim), nvec(std::move(sizes)) {
    if (kind < 0 || kind >= Heads::kCount) throw py::value_error("unknown head");
    facts = facts_of(kind);
    if (facts.categories == nvec.empty()) {
      throw py::value_error(
          "nvec belongs to the heads whose actions are categories, and to no "
          "other");
    }
    if (facts.categories) actions = Index(nvec.size());
    // Each bound by itself, so that no sum of them overflows.
    for (const Index size : nvec) require_within("nvec has", size, outputs);
    require_within("the number of actions is", actions, outputs);
    const Index width = width_of({kind, outputs, actions, nvec.data()});
    if (width != outputs) {
      throw py::value_error("the head needs " + std::to_string(width) +
                            " outputs, the last layer has " + std::to_string(outputs));
    }
  }

  void require_log_std(bool given) const {
    if (given != facts.log_std_is_parameter) {
      throw py::value_error(
          "log_std belongs to the head whose log std is a parameter, and to no other");
    }
  }

  // [actions]; null of a head without one.
  template <class T>
  VectorView<const T> log_std(py::handle arg) const {
    require_log_std(!arg.is_none());
    return strided_arg<const T>(arg, "log_std", actions);
  }

 private:
  static void require_within(const char* what, Index size, Index outputs) {
    if (size < 1 || size > outputs) {
      throw py::value_error(std::string(what) + " " + std::to_string(size) + ", outside 1 .. " +
                            std::to_string(outputs) + ", the last layer's outputs");
    }
  }
};

}  // namespace trpo_fast
