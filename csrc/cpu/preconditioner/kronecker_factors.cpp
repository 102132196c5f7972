#include "cpu/preconditioner/kronecker_factors.h"

#include <algorithm>

#include "cpu/kernels/dispatch.h"
#include "cpu/network/slopes.h"
#include "cpu/preconditioner/second_moment.h"

namespace trpo_fast {
namespace {

constexpr Index kPanelRows = 96;  // a multiple of the kernels' row tiles (6 and 12)

// Slabs of a matrix that has room for one more feature: the next layer's bias input.
Slabs roomy(Index features) {
  Slabs slabs(features + 1);
  slabs.features = features;
  slabs.count = (features + slabs.width - 1) / slabs.width;
  return slabs;
}

// W' as a right operand: rows are outputs, columns inputs.
template <class T>
void pack_transposed(const Layer<T>& layer, T* to) {
  const Slabs in(layer.in);
  for (Index slab = 0; slab < in.count; ++slab) {
    const Index first = slab * in.width, columns = std::min(in.width, layer.in - first);
    for (Index o = 0; o < layer.out; ++o, to += in.width) {
      const T* row = layer.weight + o * layer.weight_row_stride + first * layer.weight_col_stride;
      for (Index c = 0; c < columns; ++c) to[c] = row[c * layer.weight_col_stride];
      std::fill(to + columns, to + in.width, T(0));
    }
  }
}

}  // namespace

template <class T>
KroneckerFactors<T>::KroneckerFactors(const PolicyBatch<T>& batch, Index rows, Arena&& arena)
    : batch_(batch),
      kernels_(dense_kernels().get<T>()),
      head_(batch.head()),
      rows_(rows),
      weight_sum_(double(rows)),
      weights_(batch.layers, arena) {
  for (const Layer<T>& layer : batch.layers) {
    const Slabs in(layer.in + 1), out = roomy(layer.out);
    backward_weights_.push_back(arena.take<T>(Slabs(layer.in).size(layer.out)));
    inputs_.push_back({arena.take<T>(in.size(rows)), in, rows});
    gradients_.push_back({arena.take<T>(out.size(rows)), out, rows});
    const bool stored = !slope_from_output(layer.activation);
    slopes_.push_back(stored ? arena.take<T>(out.size(rows)) : nullptr);
  }
  inv_std_ = arena.take<double>(scales_of(head_));
  row_buffers_ = arena.take<T>(round_up(head_.outputs, kPadding) * batch.threads);
  Index moments = 0;
  for (const Layer<T>& layer : batch.layers) {
    moments += Slabs(layer.in + 1).size(layer.in + 1) + roomy(layer.out).size(layer.out);
  }
  moments_ = arena.take<T>(moments);
}

template <class T>
KroneckerFactors<T>::KroneckerFactors(const PolicyBatch<T>& batch, Index rows, void* workspace)
    : KroneckerFactors(batch, rows, Arena(workspace)) {
  weights_.pack(batch.layers);
  for (std::size_t l = 0; l < batch.layers.size(); ++l) {
    pack_transposed(batch.layers[l], backward_weights_[l]);
  }
  for (Index a = 0; batch.log_std != nullptr && a < scales_of(head_); ++a) {
    inv_std_[a] = std::exp(-double(batch.log_std[a * batch.log_std_stride]));
  }
  if (batch.rows.weights == nullptr) return;
  weight_sum_ = 0;
  for (Index i = 0; i < rows; ++i) weight_sum_ += batch.rows.weight(row_of(i));
}

template <class T>
std::size_t KroneckerFactors<T>::workspace_bytes(const PolicyBatch<T>& batch, Index rows) {
  Arena arena(nullptr);
  const KroneckerFactors<T> counted(batch, rows, static_cast<Arena&&>(arena));
  return arena.used();
}

template <class T>
Panel<T> KroneckerFactors<T>::rows_from(const Panel<T>& all, Index first) const {
  return {all.row(first), all.slabs, all.panel_rows};
}

// Where a layer's outputs go: the next layer's inputs, of which they are all but the last feature.
template <class T>
Panel<T> KroneckerFactors<T>::outputs_of(std::size_t layer, Index first) const {
  if (layer + 1 == inputs_.size()) return rows_from(gradients_.back(), first);
  const Panel<T>& all = inputs_[layer + 1];
  return {all.row(first), roomy(weights_.layers[layer].out), all.panel_rows};
}

// The slopes of a hidden layer's outputs, laid out as these are; null: they follow from them.
template <class T>
T* KroneckerFactors<T>::slope_of(std::size_t layer, const Panel<T>& outputs) const {
  return slopes_[layer] == nullptr ? nullptr
                                   : slopes_[layer] + (outputs.data - inputs_[layer + 1].data);
}

template <class T>
void KroneckerFactors<T>::forward(Index first, Index count) const {
  const MatrixView<const T>& obs = batch_.rows.obs;
  const Panel<T> x = rows_from(inputs_[0], first);
  for (Index r = 0; r < count; ++r) {
    const T* const from = obs.data + row_of(first + r) * obs.row_stride;
    for (Index f = 0; f < obs.cols; ++f) x.at(r, f) = from[f * obs.col_stride];
  }
  for (std::size_t l = 0; l < weights_.layers.size(); ++l) {
    const PackedLayer<T>& layer = weights_.layers[l];
    const Panel<T> z = outputs_of(l, first);
    Product<T> p = into<T>(z, count, layer.bias);
    add_term<T>(p, rows_of(rows_from(inputs_[l], first)),
                packed<T>(layer.weight, layer.out_slabs, layer.in), layer.in);
    kernels_.product(p);
    if (l + 1 == weights_.layers.size()) return;
    activate_rows<T>(kernels_, layer, z, count, slope_of(l, z));
  }
}

template <class T>
void KroneckerFactors<T>::draw(const T* signs, Index first, Index count, T* row) const {
  const Panel<T> outputs = rows_from(gradients_.back(), first);
  with_head(head_, [&](auto head) {
    for (Index r = 0; r < count; ++r) {
      T* const o = outputs.contiguous(r, row);
      head.metric_root(inv_std_, batch_.rows.mask_row(row_of(first + r)),
                       signs + (first + r) * head.outputs, o);
      outputs.put_back(r, o);
    }
  });
}

// e_{l-1} = (e_l W_l) phi'(z_{l-1})
template <class T>
void KroneckerFactors<T>::backward(Index first, Index count) const {
  for (std::size_t l = weights_.layers.size(); l-- > 1;) {
    const Panel<T> below = rows_from(gradients_[l - 1], first);
    const Panel<T> value = outputs_of(l - 1, first);
    const PackedLayer<T>& layer = weights_.layers[l - 1];
    const Index out = weights_.layers[l].out;
    Product<T> p = into<T>(below, count, nullptr);
    add_term<T>(p, rows_of(rows_from(gradients_[l], first)),
                packed<T>(backward_weights_[l], Slabs(layer.out), out), out);
    finish_with_slope<T>(p, layer.activation, value.data, slope_of(l - 1, value));
    kernels_.product(p);
  }
}

// The bias's 1, and the roots of the weights, which belong to neither the network nor its gradient.
template <class T>
void KroneckerFactors<T>::weigh(Index first, Index count) const {
  for (Index r = 0; r < count; ++r) {
    const T root = T(std::sqrt(batch_.rows.weight(row_of(first + r))));
    for (std::size_t l = 0; l < inputs_.size(); ++l) {
      const Panel<T> x = rows_from(inputs_[l], first), e = rows_from(gradients_[l], first);
      x.at(r, x.slabs.features - 1) = root;
      if (batch_.rows.weights == nullptr) continue;
      for (Index f = 0; f + 1 < x.slabs.features; ++f) x.at(r, f) *= root;
      for (Index f = 0; f < e.slabs.features; ++f) e.at(r, f) *= root;
    }
  }
}

template <class T>
void KroneckerFactors<T>::compute(const T* signs,
                                  const std::vector<FactorTarget<T>>& targets) const {
  const Index panels = (rows_ + kPanelRows - 1) / kPanelRows;
  parallel_for(panels, batch_.threads, [&](Index panel, int worker) {
    const Index first = panel * kPanelRows, count = std::min(kPanelRows, rows_ - first);
    forward(first, count);
    draw(signs, first, count, row_buffers_ + worker * round_up(head_.outputs, kPadding));
    backward(first, count);
    weigh(first, count);
  });
  struct Task {
    const Panel<T>* x;
    Index features, slab;
    T *sums, *to;
  };
  std::vector<Task> tasks;
  T* sums = moments_;
  const auto add = [&](const Panel<T>& x, Index features, T* to) {
    for (Index slab = 0; to != nullptr && slab * x.slabs.width < features; ++slab) {
      tasks.push_back({&x, features, slab, sums, to});
      sums += features * x.slabs.width;
    }
  };
  for (std::size_t l = 0; l < targets.size(); ++l) {
    add(inputs_[l], batch_.layers[l].in + (targets[l].bias ? 1 : 0), targets[l].A);
    add(gradients_[l], batch_.layers[l].out, targets[l].G);
  }
  parallel_for(Index(tasks.size()), batch_.threads, [&](Index task, int) {
    const Task& t = tasks[std::size_t(task)];
    second_moment(kernels_, *t.x, rows_, t.features, t.slab, weight_sum_, t.sums, t.to);
  });
}

template class KroneckerFactors<float>;
template class KroneckerFactors<double>;

}  // namespace trpo_fast
