#include "cpu/network/sampling.h"

#include <algorithm>

#include "cpu/kernels/dispatch.h"
#include "cpu/parallel.h"

namespace trpo_fast {
namespace {

constexpr Index kPanelRows = 48;  // a multiple of the kernels' row tiles (6 and 12)

}  // namespace

template <class T>
Sampling<T>::Sampling(const SamplingPolicy<T>& policy, Arena&& arena)
    : kernels_(dense_kernels().get<T>()),
      network_(policy.layers, arena),
      nvec_(policy.nvec),
      parts_(policy.parts),
      head_(policy.head()),
      threads_(policy.threads),
      panel_size_(network_.widest() * kPanelRows),
      input_size_(round_up(policy.layers.front().in * kPanelRows, kPadding)) {
  head_.nvec = nvec_.data();
  head_.parts = parts_.data();
  scratch_size_ = input_size_ + 2 * panel_size_ + round_up(head_.outputs, kPadding);
  for (double** constants : {&log_std_, &inv_std_, &std_}) {
    *constants = arena.take<double>(scales_of(head_));
  }
  scratch_ = arena.take<T>(scratch_size_ * threads_);
}

template <class T>
Sampling<T>::Sampling(const SamplingPolicy<T>& policy, void* workspace)
    : Sampling(policy, Arena(workspace)) {
  network_.pack(policy.layers);
  for (Index a = 0; policy.log_std != nullptr && a < scales_of(head_); ++a) {
    log_std_[a] = double(policy.log_std[a * policy.log_std_stride]);
    std_[a] = std::exp(log_std_[a]);
    inv_std_[a] = std::exp(-log_std_[a]);
  }
}

template <class T>
std::size_t Sampling<T>::workspace_bytes(const SamplingPolicy<T>& policy) {
  Arena arena(nullptr);
  const Sampling<T> counted(policy, static_cast<Arena&&>(arena));
  return arena.used();
}

// Rows of all steps are numbered through: row = t envs + env. Networks are shown floats.
template <class T>
template <class E>
void Sampling<T>::show(const Observations<E>& from, const RolloutBuffers<T>& buffers, Index row,
                       Index rows, T* x) const {
  const E* raw = from.raw + row * buffers.inputs;
  const E clip = E(buffers.clip);
  for (Index r = 0; r < rows; ++r) {
    for (Index i = 0; i < buffers.inputs; ++i) {
      E value = *raw++;
      if (from.mean != nullptr) {
        value = (value - from.mean[i]) * from.scale[i];
        value = value < -clip ? -clip : value > clip ? clip : value;
      }
      *x++ = T(float(value));
    }
  }
}

template <class T>
template <class H>
void Sampling<T>::draw(const H& head, const RolloutBuffers<T>& b, Index row,
                       const T* outputs) const {
  const Index at = row * b.actions;
  const std::uint8_t* const mask = b.masks == nullptr ? nullptr : b.masks + row * b.mask_width;
  T* const real = b.real == nullptr ? nullptr : b.real + at;
  std::int64_t* const category = b.category == nullptr ? nullptr : b.category + at;
  const RowNoise<T> noise{b.normal == nullptr ? nullptr : b.normal + at,
                          b.other == nullptr ? nullptr : b.other + at};
  head.draw(outputs, noise, mask, {std_, real, category});
  const RowAction<T> action{real, category, 1};
  b.log_prob[row] = head.log_prob(outputs, {log_std_, inv_std_}, action, mask);
  for (Index a = 0; b.env_real != nullptr && a < b.actions; ++a) {
    // NaN passes through.
    b.env_real[at + a] = real[a] < b.low[a] ? b.low[a] : real[a] > b.high[a] ? b.high[a] : real[a];
  }
  for (Index a = 0; b.env_category != nullptr && a < b.actions; ++a) {
    b.env_category[at + a] = category[a] + b.start[a];
  }
}

template <class T>
void Sampling<T>::step(const RolloutBuffers<T>& buffers, Index t) const {
  const Index first = t * buffers.envs, panels = (buffers.envs + kPanelRows - 1) / kPanelRows;
  parallel_for(panels, threads_, [&](Index index, int worker) {
    const Index row = first + index * kPanelRows;
    const Index rows = std::min(kPanelRows, first + buffers.envs - row);
    T* const x = scratch_ + worker * scratch_size_;
    T* const panels_of_layers[2] = {x + input_size_, x + input_size_ + panel_size_};
    if (buffers.wide.raw == nullptr) show(buffers.narrow, buffers, row, rows, x);
    if (buffers.wide.raw != nullptr) show(buffers.wide, buffers, row, rows, x);
    const MatrixView<const T> input{x, rows, buffers.inputs, buffers.inputs, 1};
    const Panel<T> outputs =
        forward_panel<T>(kernels_, network_, input, rows, kPanelRows, panels_of_layers);
    T* const buffer = x + input_size_ + 2 * panel_size_;
    with_head(head_, [&](auto head) {
      for (Index r = 0; r < rows; ++r) draw(head, buffers, row + r, outputs.contiguous(r, buffer));
    });
  });
}

template class Sampling<float>;
template class Sampling<double>;

}  // namespace trpo_fast
