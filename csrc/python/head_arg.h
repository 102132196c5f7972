// A policy head as Python passes it, checked against the columns of the last layer.
#pragma once

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
    if (!nvec.empty()) actions = Index(nvec.size());
    facts = facts_of({kind, outputs, actions, nvec.data()});
    if (facts.categories == nvec.empty() || facts.width != outputs) {
      throw py::value_error("the head does not fit the last layer's outputs");
    }
  }

  void require_log_std(bool given) const {
    if (given != facts.log_std_is_parameter) {
      throw py::value_error(
          "log_std belongs to the head whose log std is a parameter, and to no other");
    }
  }
};

}  // namespace trpo_fast
