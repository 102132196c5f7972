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
  std::vector<HeadPart> parts;
  HeadFacts facts;
  Index scales, mask_width;

  // From "head", "action_dim", "nvec" and "parts"; `outputs` of the last layer.
  template <class Args>
  static HeadArg of(const Args& args, Index outputs) {
    return HeadArg(args["head"].template cast<int>(), args["action_dim"].template cast<Index>(),
                   args["nvec"].template cast<std::vector<Index>>(),
                   args["parts"].template cast<PartArgs>(), outputs);
  }

  // A joint head's parts: each a kind, the actions of one whose are no categories, else the number
  // of blocks.
  using PartArgs = std::vector<std::pair<int, Index>>;

  // action_dim: of heads whose actions are no categories; nvec: of the others, and of such parts.
  HeadArg(int number, Index action_dim, std::vector<Index> sizes, const PartArgs& given,
          Index outputs)
      : kind(number), actions(action_dim), nvec(std::move(sizes)) {
    if (kind < 0 || kind >= Heads::kCount) throw py::value_error("unknown head");
    facts = facts_of(kind);
    // Each bound by itself, so that no sum of them overflows.
    for (const Index size : nvec) require_within("nvec has", size, outputs);
    if (kind == kJoint) {
      read_parts(given, outputs);
    } else {
      if (!given.empty()) throw py::value_error("parts belong to the joint head");
      if (facts.categories == nvec.empty()) {
        throw py::value_error(
            "nvec belongs to the heads whose actions are categories, and to no "
            "other");
      }
      if (facts.categories) actions = Index(nvec.size());
    }
    require_within("the number of actions is", actions, outputs);
    const Head found = head(outputs);
    const Index width = width_of(found);
    if (width != outputs) {
      throw py::value_error("the head needs " + std::to_string(width) +
                            " outputs, the last layer has " + std::to_string(outputs));
    }
    scales = scales_of(found);
    mask_width = mask_width_of(found);
  }

  Head head(Index outputs) const {
    return {kind, outputs, actions, nvec.data(), parts.data(), Index(parts.size())};
  }

  // IndexError where a joint head's category number, in the real columns of row(n), is none.
  template <class Row>
  void require_categories(Index rows, Row&& row) const {
    Index column = 0, block = 0;
    for (const HeadPart& part : parts) {
      const bool categories = facts_of(part.kind).categories;
      for (Index a = 0; categories && a < part.actions; ++a, ++block) {
        for (Index n = 0; n < rows; ++n) {
          const auto action = row(n);
          const double chosen = double(action.real[(column + a) * action.stride]);
          if (chosen >= 0 && chosen < double(nvec[std::size_t(block)])) continue;  // NaN is not
          throw py::index_error("actions[" + std::to_string(n) + ", " + std::to_string(column + a) +
                                "] is " + std::to_string(chosen) + ", outside 0 .. " +
                                std::to_string(nvec[std::size_t(block)] - 1));
        }
      }
      column += part.actions;
    }
  }

  void require_log_std(bool given) const {
    if (given != (scales > 0)) {
      throw py::value_error(
          "log_std belongs to the heads whose log std is a parameter, and to no other");
    }
  }

  // [scales]; null of a head without one.
  template <class T>
  VectorView<const T> log_std(py::handle arg) const {
    require_log_std(!arg.is_none());
    return strided_arg<const T>(arg, "log_std", scales);
  }

 private:
  static constexpr int kJoint = Heads::kCount - 1;

  void read_parts(const PartArgs& given, Index outputs) {
    if (given.empty()) throw py::value_error("a joint head has parts");
    Index block = 0, left = outputs, total = 0;
    for (const auto& [part, size] : given) {
      if (part < 0 || part >= kJoint) throw py::value_error("unknown part of a joint head");
      require_within("a part's number of actions is", size, outputs);
      const bool categories = facts_of(part).categories;
      if (categories && block + size > Index(nvec.size())) {
        throw py::value_error("nvec ends before the parts' blocks do");
      }
      const Index width = width_of({part, outputs, size, nvec.data() + block});
      if (width > left)
        throw py::value_error("the parts need more outputs than the last layer has");
      left -= width;
      total += size;
      if (categories) block += size;
      parts.push_back({part, int(width), int(size)});
    }
    if (block != Index(nvec.size())) throw py::value_error("nvec goes on beyond the parts' blocks");
    if (total != actions) {
      throw py::value_error("the parts have " + std::to_string(total) + " actions, action_dim is " +
                            std::to_string(actions));
    }
  }

  static void require_within(const char* what, Index size, Index outputs) {
    if (size < 1 || size > outputs) {
      throw py::value_error(std::string(what) + " " + std::to_string(size) + ", outside 1 .. " +
                            std::to_string(outputs) + ", the last layer's outputs");
    }
  }
};

}  // namespace trpo_fast
