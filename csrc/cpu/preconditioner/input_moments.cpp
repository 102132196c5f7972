#include "cpu/preconditioner/input_moments.h"

#include <cmath>

#include "cpu/kernels/dispatch.h"
#include "cpu/preconditioner/second_moment.h"

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
  for (const Layer<T>& layer : batch.layers) {
    const Slabs slabs(layer.in);
    T* const floats = arena.take<T>(rounded_ ? 0 : slabs.size(rows));
    Pair* const pair_words = arena.take<Pair>(rounded_ ? slabs.size(pairs()) : 0);
    inputs_.push_back({slabs, floats, pair_words, arena.take<T>(slabs.size(layer.in + 1))});
  }
  // A whole vector of them is rounded at a time, and a pair may want one more.
  roots_ = arena.take<T>(round_up(rows + 1, kPadding));
  root_pairs_ = arena.take<Pair>(rounded_ ? round_up(rows + 1, kPadding) : 0);
}

template <class T>
InputMoments<T>::InputMoments(const PolicyBatch<T>& batch, const PolicyProblem<T>& problem,
                              Index rows, void* workspace)
    : InputMoments(batch, &problem, rows, Arena(workspace)) {
  std::fill_n(roots_, round_up(rows + 1, kPadding), T(0));
  std::fill_n(roots_, rows, T(1));
  if (problem.weighted()) {
    weight_sum_ = 0;
    for (Index i = 0; i < rows; ++i) {
      const double weight = problem.kept_weight(problem.kept_row(i, rows));
      weight_sum_ += weight;
      roots_[i] = T(std::sqrt(weight));
    }
  }
  if constexpr (std::is_same_v<T, float>) {
    // Pairs of a single feature are its rounded values one after the other.
    Bf16* const words = reinterpret_cast<Bf16*>(root_pairs_);
    if (rounded_) dense_kernels().bf16.round(roots_, round_up(rows + 1, kPadding), words, nullptr);
  }
}

template <class T>
std::size_t InputMoments<T>::workspace_bytes(const PolicyBatch<T>& batch, Index rows) {
  Arena arena(nullptr);
  const InputMoments<T> counted(batch, nullptr, rows, static_cast<Arena&&>(arena));
  return arena.used();
}

template <class T>
void InputMoments<T>::gather_floats(std::size_t layer, Index slab, const KeptRow* kept, Index count,
                                    T* to) const {
  const Slabs& slabs = inputs_[layer].slabs;
  const Index from = slab * slabs.width, columns = std::min(slabs.width, slabs.features - from);
  for (Index r = 0; r < count; ++r, to += slabs.width) {
    problem_->kept_input(layer, kept[r], from, columns, to);
    std::fill(to + columns, to + slabs.width, T(0));
    if (!problem_->weighted()) continue;
    const T root = T(std::sqrt(problem_->kept_weight(kept[r])));
    for (Index c = 0; c < columns; ++c) to[c] *= root;
  }
}

// Rows that are kept as they are needed; false where they are not.
template <class T>
bool InputMoments<T>::copy_rounded(std::size_t layer, Index slab, const KeptRow* kept, Index count,
                                   Bf16* to) const {
  const Index width = inputs_[layer].slabs.width;
  for (Index r = 0; r < count; ++r) {
    const Bf16* const row = problem_->kept_rounded(layer, kept[r], slab);
    if (row == nullptr) return false;
    std::copy_n(row, width, to + r * width);
  }
  return true;
}

template <class T>
void InputMoments<T>::gather(Index first, const std::vector<MomentTarget<T>>& targets) const {
  const Index count = std::min(kGatherRows, rows_ - first);
  KeptRow kept[kGatherRows];
  for (Index r = 0; r < count; ++r) kept[r] = problem_->kept_row(first + r, rows_);
  for (std::size_t l = 0; l < inputs_.size(); ++l) {
    const Inputs& in = inputs_[l];
    const Index width = in.slabs.width;
    for (Index slab = 0; targets[l].A != nullptr && slab < in.slabs.count; ++slab) {
      if (!rounded_) {
        gather_floats(l, slab, kept, count, in.rows + (slab * rows_ + first) * width);
        continue;
      }
      if constexpr (std::is_same_v<T, float>) {
        const Bf16Kernels& kernels = dense_kernels().bf16;
        Bf16 rounded[kGatherRows * kSlabWidth];
        if (problem_->weighted() || !copy_rounded(l, slab, kept, count, rounded)) {
          T rows[kGatherRows * kSlabWidth];
          gather_floats(l, slab, kept, count, rows);
          kernels.round(rows, count * width, rounded, nullptr);
        }
        kernels.pair_rows(rounded, count, width, in.pairs + (slab * pairs() + first / 2) * width);
      }
    }
  }
}

template <class T>
void InputMoments<T>::add_up(const Task& task, const MomentTarget<T>& target) const {
  const Inputs& in = inputs_[task.layer];
  const Index features = in.slabs.features, width = in.slabs.width;
  const MomentColumns columns(in.slabs, features, task.slab);
  T* const sums = in.sums + task.slab * width * (features + 1);
  T* const bias_sums = sums + features * width;
  if constexpr (std::is_same_v<T, float>) {
    if (rounded_) {
      const Bf16Kernels& kernels = dense_kernels().bf16;
      moment_sums(kernels, in.pairs, in.slabs, pairs(), columns, sums);
      const Pair* const right = in.pairs + task.slab * width * pairs();
      const Term<Pair> term{one_feature(root_pairs_), {right, width, 0}, pairs()};
      kernels.product(plain_product(1, columns.slabs, &term, bias_sums, false));
    }
  }
  if (!rounded_) {
    const Kernels<T>& kernels = dense_kernels().get<T>();
    moment_sums(kernels, {in.rows, in.slabs, rows_}, rows_, columns, sums);
    Product<T> p = sum_into(bias_sums, 1, columns.slabs, true);
    add_term<T>(p, one_feature(roots_), {in.rows + task.slab * width * rows_, width, 0}, rows_);
    kernels.product(p);
  }
  const Index m = features + (target.bias ? 1 : 0);
  put_moment(columns, sums, weight_sum_, m, target.A);
  for (Index j = columns.begin; target.bias && j < columns.end; ++j) {
    const T mean = T(double(bias_sums[j - columns.begin]) / weight_sum_);
    target.A[features * m + j] = target.A[j * m + features] = mean;
  }
}

template <class T>
void InputMoments<T>::compute(const std::vector<MomentTarget<T>>& targets) const {
  const Index blocks = (rows_ + kGatherRows - 1) / kGatherRows;
  parallel_for(blocks, batch_.threads,
               [&](Index block, int) { gather(block * kGatherRows, targets); });
  std::vector<Task> tasks;
  for (std::size_t l = 0; l < inputs_.size(); ++l) {
    const Slabs& slabs = inputs_[l].slabs;
    const Index m = slabs.features;
    if (targets[l].A == nullptr) continue;
    if (targets[l].bias) targets[l].A[m * (m + 1) + m] = T(1);
    for (Index slab = 0; slab < slabs.count; ++slab) {
      const MomentColumns columns(slabs, m, slab);
      tasks.push_back({l, slab, columns.end * (columns.end - columns.begin)});
    }
  }
  std::stable_sort(tasks.begin(), tasks.end(), [](const Task& a, const Task& b) {
    return a.work > b.work;  // the longest first
  });
  parallel_for(Index(tasks.size()), batch_.threads, [&](Index i, int) {
    const Task& task = tasks[std::size_t(i)];
    add_up(task, targets[task.layer]);
  });
}

template class InputMoments<float>;
template class InputMoments<double>;

}  // namespace trpo_fast
