// The surrogate's loss and gradient at theta_old over the outputs of a panel of rows, and what
// later passes read: old outputs, log-probabilities, the metric.
#pragma once

#include "cuda/block.cuh"

namespace trpo_fast::cuda {

template <class T>
__device__ RowAction<T> action_of(const ProblemArgs<T>& a, Index row) {
  return {a.real_actions ? a.real_actions + row * a.actions : nullptr,
          a.category_actions ? a.category_actions + row * a.actions : nullptr, 1};
}

// Below, `panels` is a block at work on a panel of rows: Panels, or the tiled plan's TilePanels.
template <class P, class T = typename P::Element>
__device__ void cache_metric(const P& panels, const BlockRows<T>& rows, Index row,
                             const T* outputs) {
  const ProblemArgs<T>& a = panels.args;
  with_head(a.head(), [&](auto head) {
    if constexpr (!head.kSharedMetric) {
      head.metric_cache(outputs, {panels.log_std, panels.inv_std}, rows.mask(row, a.mask_width),
                        a.metric + row * a.metric_width);
    }
  });
}

// loss -= w ratio A, and each row's share of it, for the deltas; returns this thread's loss.
template <class P, class T = typename P::Element>
__device__ double surrogate_rows(const P& panels, const BlockRows<T>& rows, Index first) {
  const ProblemArgs<T>& a = panels.args;
  const int r = threadIdx.x;
  if (r >= P::kPanel) return 0;
  panels.gains[r] = 0;
  if (r >= panels.panel_rows(rows, first)) return 0;
  const Index row = first + r;
  const T* const o = panels.outputs() + r * panels.stride;
  for (int i = 0; i < a.outputs; ++i) a.old_outputs[row * a.outputs + i] = o[i];
  if (a.fisher_is_all) cache_metric(panels, rows, row, o);
  const double now = with_head(a.head(), [&](auto head) {
    return head.log_prob(o, {panels.log_std, panels.inv_std}, action_of(a, row),
                         rows.mask(row, a.mask_width));
  });
  const double old = a.old_log_prob ? a.old_log_prob[row] : now;
  a.row_log_prob[row] = old;
  const double gain = rows.share(row) * std::exp(now - old) * double(a.advantages[row]);
  panels.gains[r] = gain;
  return -gain;
}

// The gradient by a log std that is a parameter, a thread's actions.
template <class P, class T = typename P::Element>
__device__ void log_std_rows(const P& panels, const BlockRows<T>& rows, Index first) {
  const ProblemArgs<T>& a = panels.args;
  with_head(a.head(), [&](auto head) {
    for (int i = threadIdx.x; i < a.scales; i += kThreads) {
      for (int r = 0; r < panels.panel_rows(rows, first); ++r) {
        const double slope =
            head.log_std_slope(i, panels.outputs() + r * panels.stride,
                               {panels.log_std, panels.inv_std}, action_of(a, first + r));
        panels.log_std_sums[i] += panels.gains[r] * slope;
      }
    }
  });
}

// delta = d(w ratio log pi)/d outputs A, in place of the outputs.
template <class P, class T = typename P::Element>
__device__ void delta_rows(const P& panels, const BlockRows<T>& rows, Index first) {
  const ProblemArgs<T>& a = panels.args;
  const int r = threadIdx.x;
  if (r >= P::kPanel) return;
  T* const o = panels.outputs() + r * panels.stride;
  const bool counts = r < panels.panel_rows(rows, first);
  if (counts) {
    with_head(a.head(), [&](auto head) {
      head.log_prob_gradient(o, {panels.log_std, panels.inv_std}, action_of(a, first + r),
                             rows.mask(first + r, a.mask_width), panels.gains[r], o);
    });
  }
  for (int i = counts ? a.outputs : 0; i < panels.net.last().out_padded; ++i) o[i] = 0;
}

}  // namespace trpo_fast::cuda
