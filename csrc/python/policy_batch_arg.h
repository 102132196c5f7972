// One update's batch, and a K-FAC preconditioner for it, as Python passes them. Every address's
// sizes are checked against what the kernels will read.
#pragma once

#include <memory>
#include <string>
#include <tuple>
#include <type_traits>
#include <utility>
#include <vector>

#include "cpu/policy/policy_problem.h"
#include "cpu/preconditioner/kfac.h"
#include "python/head_arg.h"
#include "python/tensor_arg.h"

namespace trpo_fast {

// [slabs, rows, width], as slabs.h lays out a matrix [rows, columns].
template <class T>
const T* slabs_arg(py::handle arg, Index rows, Index columns) {
  const Slabs slabs(columns);
  return contiguous_arg<const T>(arg, "block", {slabs.count, rows, slabs.width});
}

// `count` parameters at an offset of the flat vector [parameters]; -1: they have no place in it.
inline void require_offset(Index offset, Index count, Index parameters) {
  if (offset < -1 || (offset >= 0 && offset + count > parameters)) {
    throw py::value_error("a parameter's offset lies outside the flat vector");
  }
}

template <class T>
class PolicyBatchArg {
 public:
  explicit PolicyBatchArg(const py::kwargs& args) : obs_(args["obs"], "obs", 2) {
    if (rows() < 1) throw py::value_error("obs has no rows");
    batch_.layers = layers_arg<T>(py::cast<py::sequence>(args["layers"]), obs_.size(1));
    batch_.parameters = args["parameters"].cast<Index>();
    read_offsets(py::cast<py::sequence>(args["offsets"]));
    read_head(args);
    batch_.advantages = optional_arg<const T>(args["advantages"], "advantages", {rows()});
    batch_.old_log_prob =
        optional_arg<const double>(args["old_log_prob"], "old_log_prob", {rows()});
    read_rows(args);
    batch_.kl_new_old = args["kl_new_old"].cast<bool>();
    read_resources(args);
  }

  const PolicyBatch<T>& batch() const { return batch_; }

 private:
  Index rows() const { return obs_.size(0); }

  void read_offsets(const py::sequence& arg) {
    for (const py::handle item : arg) {
      const auto pair = item.cast<std::pair<Index, Index>>();
      batch_.offsets.push_back({pair.first, pair.second});
    }
    if (batch_.offsets.size() != batch_.layers.size()) {
      throw py::value_error("offsets and layers differ in number");
    }
    for (std::size_t l = 0; l < batch_.layers.size(); ++l) {
      require_offset(batch_.offsets[l].weight, batch_.layers[l].in * batch_.layers[l].out,
                     batch_.parameters);
      require_offset(batch_.offsets[l].bias, batch_.layers[l].out, batch_.parameters);
    }
  }

  void read_head(const py::kwargs& args) {
    const HeadArg head = HeadArg::of(args, batch_.layers.back().out);
    if (batch_.layers.back().activation != Activation::identity) {
      throw py::value_error("the last layer has an activation");
    }
    batch_.head_kind = head.kind;
    batch_.actions = head.actions;
    batch_.nvec = head.nvec;
    batch_.parts = head.parts;
    mask_width_ = head.mask_width;
    batch_.log_std_offset = args["log_std_offset"].cast<Index>();
    require_offset(batch_.log_std_offset, head.scales, batch_.parameters);
    const auto log_std = head.log_std<T>(args["log_std"]);
    batch_.log_std = log_std.data;
    batch_.log_std_stride = log_std.stride;
    read_actions(args["actions"], head);
  }

  void read_actions(const py::object& arg, const HeadArg& head) {
    batch_.first_action = {nullptr, nullptr, 0};
    batch_.action_row_stride = 0;
    if (arg.is_none()) return;
    const TensorArg actions(arg, "actions", 2);
    actions.require_size(0, rows());
    actions.require_size(1, batch_.actions);
    batch_.action_row_stride = actions.stride(0);
    batch_.first_action.stride = actions.stride(1);
    if (!head.facts.categories) {
      batch_.first_action.real = actions.data<const T>();
      head.require_categories(rows(), [&](Index row) { return batch_.action(row); });
      return;
    }
    batch_.first_action.category = actions.data<const std::int64_t>();
    for (Index row = 0; row < rows(); ++row) {
      for (Index a = 0; a < batch_.actions; ++a) {
        const std::int64_t chosen = batch_.action(row).category[a * actions.stride(1)];
        if (chosen < 0 || chosen >= batch_.nvec[a]) {
          throw py::index_error("actions[" + std::to_string(row) + ", " + std::to_string(a) +
                                "] is " + std::to_string(chosen) + ", outside 0 .. " +
                                std::to_string(batch_.nvec[a] - 1));
        }
      }
    }
  }

  void read_rows(const py::kwargs& args) {
    batch_.rows = row_set(obs_, args["weights"], args["action_mask"]);
    batch_.fisher_is_all = args["fisher_obs"].is_none();
    if (batch_.fisher_is_all) return;
    const TensorArg fisher_obs(args["fisher_obs"], "fisher_obs", 2);
    fisher_obs.require_size(1, obs_.size(1));
    if (fisher_obs.size(0) < 1) throw py::value_error("fisher_obs has no rows");
    batch_.fisher_rows = row_set(fisher_obs, args["fisher_weights"], args["fisher_action_mask"]);
  }

  RowSet<T> row_set(const TensorArg& obs, py::handle weights, py::handle mask) const {
    const Index rows = obs.size(0);
    return {obs.matrix<const T>(), optional_arg<const T>(weights, "weights", {rows}),
            optional_arg<const std::uint8_t>(mask, "action_mask", {rows, mask_width_}),
            mask_width_};
  }

  void read_resources(const py::kwargs& args) {
    batch_.threads = args["threads"].cast<int>();
    batch_.bf16_parts = args["bf16_parts"].cast<int>();
    const int most_parts = std::is_same_v<T, float> ? kMaxParts : 0;
    if (batch_.bf16_parts < 0 || batch_.bf16_parts > most_parts) {
      throw py::value_error("bf16_parts must be 0, or for float32 1 or 2");
    }
    batch_.cache_bytes = args["cache_bytes"].cast<Index>();
    if (batch_.threads < 1) throw py::value_error("threads must be at least 1");
    if (batch_.cache_bytes < 0) throw py::value_error("cache_bytes must be at least 0");
  }

  TensorArg obs_;
  PolicyBatch<T> batch_;
  Index mask_width_ = 0;
};

// A block is (weight offset, bias offset, inputs, outputs, left, right, right transposed or None,
// scale or None), in slabs but for `left` beside a scale.
template <class T>
KroneckerBlock<T> block_arg(py::handle item, Index parameters) {
  const auto parts = item.cast<
      std::tuple<Index, Index, Index, Index, py::object, py::object, py::object, py::object>>();
  const auto [weight, bias, inputs, out, left, right, transposed, scale] = parts;
  require_offset(weight, inputs * out, parameters);
  require_offset(bias, out, parameters);
  const Index columns = (weight >= 0 ? inputs : 0) + (bias >= 0 ? 1 : 0);
  if (inputs < 0 || out < 1 || columns < 1) throw py::value_error("a block has no entries");
  if (transposed.is_none() != scale.is_none()) throw py::value_error("a block lacks a part");
  const bool scaled = !scale.is_none();
  return {
      weight,
      bias,
      inputs,
      columns,
      out,
      scaled ? contiguous_arg<const T>(left, "factor", {out, out}) : slabs_arg<T>(left, out, out),
      slabs_arg<T>(right, columns, columns),
      scaled ? slabs_arg<T>(transposed, columns, columns) : nullptr,
      scaled ? slabs_arg<T>(scale, out, columns) : nullptr};
}

// (diagonal [P], blocks, work [size]), or None.
template <class T>
std::unique_ptr<const Preconditioner<T>> preconditioner_arg(const py::object& arg,
                                                            const PolicyBatch<T>& batch) {
  if (arg.is_none()) return nullptr;
  const auto parts = arg.cast<std::tuple<py::object, py::sequence, py::object>>();
  std::vector<KroneckerBlock<T>> blocks;
  for (const py::handle item : std::get<1>(parts))
    blocks.push_back(block_arg<T>(item, batch.parameters));
  return std::make_unique<const Preconditioner<T>>(
      contiguous_arg<const T>(std::get<0>(parts), "diagonal", {batch.parameters}), batch.parameters,
      blocks, contiguous_arg<T>(std::get<2>(parts), "work", {Preconditioner<T>::work_size(blocks)}),
      batch.threads);
}

}  // namespace trpo_fast
