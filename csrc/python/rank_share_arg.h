// A rank's share of a data-parallel update: (all, fisher, alike, product [P + 1], gradient [P + 2],
// figures [3], collective).
#pragma once

#include <memory>

#include "cpu/policy/shared_problem.h"
#include "python/gil.h"
#include "python/tensor_arg.h"

namespace trpo_fast {

template <class T>
class RankShareArg {
 public:
  RankShareArg(const py::object& arg, Index parameters) {
    const auto fields = arg.cast<py::tuple>();
    if (fields.size() != 7) throw py::value_error("ranks has seven fields");
    share_.all = fields[0].cast<double>();
    share_.fisher = fields[1].cast<double>();
    share_.alike = fields[2].cast<bool>();
    share_.product = contiguous_arg<T>(fields[3], "product", {parameters + 1});
    share_.gradient = contiguous_arg<double>(fields[4], "gradient", {parameters + 2});
    share_.figures = contiguous_arg<double>(fields[5], "figures", {3});
    call_ = fields[6];
    share_.collective = [this](Collective which) { return call(which); };
  }
  RankShareArg(const RankShareArg&) = delete;
  RankShareArg& operator=(const RankShareArg&) = delete;

  const RankShare<T>& share() const { return share_; }

  // With the GIL held: raises what a collective raised.
  void rethrow() const {
    if (error_) throw py::error_already_set(*error_);
  }

 private:
  bool call(Collective which) {
    const GilHeld held;
    try {
      call_(int(which));
      return true;
    } catch (const py::error_already_set& error) {
      error_ = std::make_unique<py::error_already_set>(error);
      return false;
    }
  }

  RankShare<T> share_;
  py::object call_;
  std::unique_ptr<py::error_already_set> error_;
};

}  // namespace trpo_fast
