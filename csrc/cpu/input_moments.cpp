#include "input_moments.h"

#include <cmath>

#include "dispatch.h"
#include "second_moment.h"

namespace trpo_fast {
namespace {

constexpr Index kGatherRows = 64;  // of a task; even, for pairs

}  // namespace

template <class T>
InputMoments<T>::InputMoments(const PolicyBatch<T>& batch, const PolicyProblem<T>* problem,
                              Index rows, Arena&& arena)
    : batch_(batch),
      problem_(problem),
      rows_(rows),
      rounded_(batch.bf16_parts > 0),
      weight_sum_(double(rows)) {
  Index widest = 0, sums = 0;
  for (const Layer<T>& layer : batch.layers) {
    const Slabs slabs(layer.in + 1);
    widest = std::max(widest, slabs.size(1));
    sums = std::max(sums, slabs.size(layer.in + 1));
  }
  inputs_ = arena.take<T>(rounded_ ? 0 : widest * rows);
  pairs_ = arena.take<Pair>(rounded_ ? widest * ((rows + 1) / 2) : 0);
  sums_ = arena.take<T>(sums);
}

template <class T>
InputMoments<T>::InputMoments(const PolicyBatch<T>& batch, const PolicyProblem<T>& problem,
                              Index rows, void* workspace)
    : InputMoments(batch, &problem, rows, Arena(workspace)) {
  if (!problem.weighted()) return;
  weight_sum_ = 0;
  for (Index i = 0; i < rows; ++i) weight_sum_ += problem.kept_weight(problem.kept_row(i, rows));
}

template <class T>
std::size_t InputMoments<T>::workspace_bytes(const PolicyBatch<T>& batch, Index rows) {
  Arena arena(nullptr);
  const InputMoments<T> counted(batch, nullptr, rows, static_cast<Arena&&>(arena));
  return arena.used();
}

// Rows [kGatherRows][width] of one slab, times the roots of their weights; the bias's 1 last.
template <class T>
void InputMoments<T>::gather(std::size_t layer, const Slabs& slabs, Index first, Index slab,
                             T* to) const {
  const Index inputs = batch_.layers[layer].in, from = slab * slabs.width;
  const Index columns = std::min(slabs.width, inputs - from);
  const Index count = std::min(kGatherRows, rows_ - first);
  for (Index r = 0; r < count; ++r, to += slabs.width) {
    const Index row = problem_->kept_row(first + r, rows_);
    const T root = problem_->weighted() ? T(std::sqrt(problem_->kept_weight(row))) : T(1);
    problem_->kept_input(layer, row, from, columns, to);
    if (root != T(1)) {
      for (Index c = 0; c < columns; ++c) to[c] *= root;
    }
    std::fill(to + columns, to + slabs.width, T(0));
    if (columns < slabs.width) to[columns] = root;
  }
}

template <class T>
void InputMoments<T>::put_rows(const Slabs& slabs, Index first, Index slab, const T* rows) const {
  if constexpr (std::is_same_v<T, float>) {
    const Index count = std::min(kGatherRows, rows_ - first), pairs = (rows_ + 1) / 2;
    Bf16 rounded[kGatherRows * kSlabWidth];
    const Bf16Kernels& kernels = dense_kernels().bf16;
    kernels.round(rows, count * slabs.width, rounded, nullptr);
    kernels.pair_rows(rounded, count, slabs.width,
                      pairs_ + (slab * pairs + first / 2) * slabs.width);
  }
}

template <class T>
void InputMoments<T>::compute(std::size_t layer, bool bias, T* to) const {
  const Index inputs = batch_.layers[layer].in, features = inputs + (bias ? 1 : 0);
  const Slabs slabs(inputs + 1);
  const Index blocks = (rows_ + kGatherRows - 1) / kGatherRows;
  parallel_for(blocks, batch_.threads, [&](Index block, int) {
    const Index first = block * kGatherRows;
    for (Index slab = 0; slab < slabs.count; ++slab) {
      if (!rounded_) {
        gather(layer, slabs, first, slab, inputs_ + (slab * rows_ + first) * slabs.width);
        continue;
      }
      T rows[kGatherRows * kSlabWidth];
      gather(layer, slabs, first, slab, rows);
      put_rows(slabs, first, slab, rows);
    }
  });
  const Index used = (features + slabs.width - 1) / slabs.width;
  parallel_for(used, batch_.threads, [&](Index task, int) {
    const Index slab = used - 1 - task;  // the longest first
    T* const sums = sums_ + slab * slabs.width * (inputs + 1);
    if constexpr (std::is_same_v<T, float>) {
      if (rounded_) {
        return second_moment(dense_kernels().bf16, pairs_, slabs, (rows_ + 1) / 2, features, slab,
                             weight_sum_, sums, to);
      }
    }
    const Panel<T> x{inputs_, slabs, rows_};
    second_moment(dense_kernels().get<T>(), x, rows_, features, slab, weight_sum_, sums, to);
  });
}

template class InputMoments<float>;
template class InputMoments<double>;

}  // namespace trpo_fast
