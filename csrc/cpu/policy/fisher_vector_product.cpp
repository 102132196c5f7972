// F v = (1 / sum w) sum_n w_n J_n' M_n J_n v, one fused pass over panels of rows: forward tangent,
// head metric, backward, weight-gradient sums (Pearlmutter 1994's R-operator; Schraudolph 2002 for
// the product with a Gauss-Newton matrix, which the Fisher matrix of these heads is).
#include <algorithm>

#include "cpu/policy/policy_problem.h"

namespace trpo_fast {

template <class T>
void PolicyProblem<T>::prepare_fisher() {
  const bool keeps_metric = metric_width_ > 0;
  for_chunks(fisher_, [&](Index panel, int worker, T*, double*, bool) {
    if (!cached(fisher_, panel) && !keeps_metric) return;
    T* const cache = cache_of(fisher_, panel, worker);
    forward_hidden(fisher_, panel, cache);
    if (cached(fisher_, panel)) keep_rounded(fisher_, panel, cache, worker);
    if (!keeps_metric) return;
    const Panel<T> outputs = forward_outputs(fisher_, panel, cache, worker);
    with_head(head_, [&](auto head) {
      for (Index r = 0; r < fisher_.rows_in(panel); ++r) {
        const Index row = panel * fisher_.panel_rows + r;
        cache_metric(head, row, outputs.contiguous(r, row_buffer(worker)));
      }
    });
  });
}

// As apply_metric and metric_square take it.
template <class T>
template <class H>
const T* PolicyProblem<T>::metric_of(const H&, Index row) const {
  return H::kSharedMetric ? inv_variance_ : metric_ + row * metric_width_;
}

template <class T>
void PolicyProblem<T>::metric_rows(Index panel, const Panel<T>& u, int worker) const {
  const T equal_share = T(1 / fisher_.weight_sum);
  with_head(head_, [&](auto head) {
    for (Index r = 0; r < fisher_.rows_in(panel); ++r) {
      const Index row = panel * fisher_.panel_rows + r;
      const T weight = fisher_.set.weights ? T(fisher_.share(row)) : equal_share;
      T* const o = u.contiguous(r, row_buffer(worker));
      head.apply_metric(metric_of(head, row), weight, o);
      u.put_back(r, o);
    }
  });
}

// The panel's share of (J v)' M (J v), rows by their weights.
template <class T>
double PolicyProblem<T>::metric_squares(Index panel, const Panel<T>& zdot, int worker) const {
  return with_head(head_, [&](auto head) {
    double total = 0;
    for (Index r = 0; r < fisher_.rows_in(panel); ++r) {
      const Index row = panel * fisher_.panel_rows + r;
      const T* const o = zdot.contiguous(r, row_buffer(worker));
      total += fisher_.share(row) * head.metric_square(metric_of(head, row), o);
    }
    return total;
  });
}

// The bfloat16 operands of a panel, or room for them.
template <class T>
Bf16* PolicyProblem<T>::rounded_cache_of(Index panel, int worker) const {
  if (panel < cached_panels_) return rounded_caches_ + panel * bf16_->cache_size();
  return rounded_scratch_of(worker) + bf16_->scratch_size();
}

template <class T>
Bf16* PolicyProblem<T>::rounded_scratch_of(int worker) const {
  return rounded_scratch_ + worker * (bf16_->cache_size() + bf16_->scratch_size());
}

template <class T>
void PolicyProblem<T>::keep_rounded(const Plan& plan, Index panel, T* cache, int worker) const {
  where_rounded(bf16_, [&](const auto& bf16) {
    Bf16* const to = rounded_cache_of(panel, worker);
    const MatrixView<const T> x = plan.obs(panel);
    bf16.keep_observations(x, to, rounded_scratch_of(worker));
    for (std::size_t l = 0; l < cached_.size(); ++l) {
      bf16.keep_hidden(l, hidden(cache, l), slopes(cache, l), x.rows, to);
    }
  });
}

template <class T>
Panel<T> PolicyProblem<T>::outputs_tangent(Index panel, int worker) const {
  T* const floats = cache_of(fisher_, panel, worker);
  const bool kept = cached(fisher_, panel);
  if (!kept) forward_hidden(fisher_, panel, floats);
  const Panel<T> zdot = buffer(worker, 0, weights_.layers.back().out_slabs);
  const bool rounded = where_rounded(bf16_, [&](const auto& bf16) {
    if (!kept) keep_rounded(fisher_, panel, floats, worker);
    const Bf16* const cache = rounded_cache_of(panel, worker);
    const bool ahead = cached(fisher_, panel + 1) && bf16.cache_size() <= kAheadElements;
    bf16.tangent(fisher_.rows_in(panel), cache, ahead ? cache + bf16.cache_size() : nullptr,
                 rounded_scratch_of(worker), zdot);
  });
  return rounded ? zdot : tangent(panel, floats, worker);
}

template <class T>
void PolicyProblem<T>::add_transposed(Index panel, const Panel<T>& u, int worker, T* partial,
                                      bool first) const {
  const bool rounded = where_rounded(bf16_, [&](const auto& bf16) {
    bf16.backward(fisher_.rows_in(panel), rounded_cache_of(panel, worker), u,
                  rounded_scratch_of(worker), blocks_, partial, first);
  });
  if (rounded) return;
  backward(fisher_, panel, cache_of(fisher_, panel, worker), u, worker, partial, first);
}

template <class T>
void PolicyProblem<T>::pack_direction(const T* v) {
  direction_.pack(layers_at(v, true), batch_.threads);
  where_rounded(bf16_, [&](auto& bf16) { bf16.pack_direction(direction_); });
}

template <class T>
void PolicyProblem<T>::fisher_product(const T* v, double damping, T* out) {
  pack_direction(v);
  for_chunks(fisher_, [&](Index panel, int worker, T* partial, double*, bool first) {
    const Panel<T> u = outputs_tangent(panel, worker);
    metric_rows(panel, u, worker);
    add_transposed(panel, u, worker, partial, first);
  });
  finish_fisher(v, damping, out);
}

template <class T>
Panel<T> PolicyProblem<T>::kept_outputs(Index panel) const {
  const Slabs& slabs = weights_.layers.back().out_slabs;
  const Index size = slabs.size(fisher_.panel_rows);
  return {fisher_outputs_ + panel * size, slabs, fisher_.panel_rows};
}

// v'Fv + damping v'v, where v'Fv = (J v)' M (J v)
template <class T>
double PolicyProblem<T>::damped_quadratic(const T* v, double damping) {
  pack_direction(v);
  for_chunks(fisher_, [&](Index panel, int worker, T*, double* sums, bool) {
    const Panel<T> zdot = outputs_tangent(panel, worker);
    sums[0] += metric_squares(panel, zdot, worker);
    std::copy_n(zdot.data, zdot.slabs.size(zdot.panel_rows), kept_outputs(panel).data);
  });
  double scales = 0;
  for (Index a = 0; batch_.log_std_offset >= 0 && a < scales_; ++a) {
    const double at = double(v[batch_.log_std_offset + a]);
    scales += kLogStdMetric * at * at;
  }
  return chunk_sum(fisher_, 0) + scales + damping * kernels_.dot(v, v, batch_.parameters);
}

template <class T>
void PolicyProblem<T>::finish_fisher_product(const T* v, double damping, T* out) {
  for_chunks(fisher_, [&](Index panel, int worker, T* partial, double*, bool first) {
    const Panel<T> u = kept_outputs(panel);
    metric_rows(panel, u, worker);
    add_transposed(panel, u, worker, partial, first);
  });
  finish_fisher(v, damping, out);
}

template <class T>
void PolicyProblem<T>::finish_fisher(const T* v, double damping, T* out) const {
  reduce(fisher_, out);
  for (Index a = 0; batch_.log_std_offset >= 0 && a < scales_; ++a) {
    out[batch_.log_std_offset + a] = T(kLogStdMetric) * v[batch_.log_std_offset + a];
  }
  for (Index i = 0; damping != 0 && i < batch_.parameters; ++i) out[i] += T(damping) * v[i];
}

template class PolicyProblem<float>;
template class PolicyProblem<double>;

}  // namespace trpo_fast
