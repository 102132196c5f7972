// F v = (1 / sum w) sum_n w_n J_n' M_n J_n v, one fused pass over panels of rows: forward tangent,
// head metric, backward, weight-gradient sums (Pearlmutter 1994's R-operator; Schraudolph 2002 for
// the product with a Gauss-Newton matrix, which the Fisher matrix of these heads is).
#include "policy_problem.h"

namespace trpo_fast {

template <class T>
void PolicyProblem<T>::prepare_fisher() {
  const bool keeps_metric = head_.kind != HeadKind::gaussian;
  for_chunks(fisher_, [&](Index panel, int worker, T*, double*, bool) {
    if (!cached(fisher_, panel) && !keeps_metric) return;
    T* const cache = cache_of(fisher_, panel, worker);
    forward_hidden(fisher_, panel, cache);
    if (cached(fisher_, panel)) keep_rounded(fisher_, panel, cache, worker);
    if (!keeps_metric) return;
    const Panel<T> outputs = forward_outputs(fisher_, panel, cache, worker);
    for (Index r = 0; r < fisher_.rows_in(panel); ++r) {
      const Index row = panel * fisher_.panel_rows + r;
      cache_metric(row, outputs.contiguous(r, row_buffer(worker)));
    }
  });
}

template <class T>
void PolicyProblem<T>::metric_rows(Index panel, const Panel<T>& u, int worker) const {
  const bool shared = head_.kind == HeadKind::gaussian;
  const T equal_share = T(1 / fisher_.weight_sum);
  for (Index r = 0; r < fisher_.rows_in(panel); ++r) {
    const Index row = panel * fisher_.panel_rows + r;
    const T weight = fisher_.set.weights ? T(fisher_.share(row)) : equal_share;
    T* const o = u.contiguous(r, row_buffer(worker));
    apply_metric(head_, shared ? inv_variance_ : metric_ + row * head_.outputs, weight, o);
    u.put_back(r, o);
  }
}

// The bfloat16 operands of a panel, or room for them.
template <class T>
Bf16* PolicyProblem<T>::rounded_cache_of(Index panel, int worker) const {
  if (panel < cached_panels_) return rounded_caches_ + panel * bf16_->cache_size();
  return rounded_scratch_ + worker * (bf16_->cache_size() + bf16_->scratch_size()) +
         bf16_->scratch_size();
}

template <class T>
void PolicyProblem<T>::keep_rounded(const Plan& plan, Index panel, T* cache, int worker) const {
  if constexpr (std::is_same_v<T, float>) {
    if (!bf16_) return;
    Bf16* const to = rounded_cache_of(panel, worker);
    const MatrixView<const T> x = plan.obs(panel);
    bf16_->keep_observations(
        x, to, rounded_scratch_ + worker * (bf16_->cache_size() + bf16_->scratch_size()));
    for (std::size_t l = 0; l < cached_.size(); ++l) {
      bf16_->keep_hidden(l, hidden(cache, l), slopes(cache, l), x.rows, to);
    }
  }
}

template <class T>
void PolicyProblem<T>::rounded_product(Index panel, int worker, T* partial, bool first) const {
  if constexpr (std::is_same_v<T, float>) {
    const Index rows = fisher_.rows_in(panel);
    Bf16* const cache = rounded_cache_of(panel, worker);
    Bf16* const scratch = rounded_scratch_ + worker * (bf16_->cache_size() + bf16_->scratch_size());
    if (!cached(fisher_, panel)) {
      forward_hidden(fisher_, panel, scratch_of(worker));
      keep_rounded(fisher_, panel, scratch_of(worker), worker);
    }
    const bool ahead = cached(fisher_, panel + 1) && bf16_->cache_size() <= kAheadElements;
    const Panel<T> u = buffer(worker, 0, weights_.layers.back().out_slabs);
    bf16_->tangent(rows, cache, ahead ? cache + bf16_->cache_size() : nullptr, scratch, u);
    metric_rows(panel, u, worker);
    bf16_->backward(rows, cache, u, scratch, blocks_, partial, first);
  }
}

template <class T>
void PolicyProblem<T>::fisher_product(const T* v, double damping, T* out) {
  direction_.pack(layers_at(v, true), batch_.threads);
  if constexpr (std::is_same_v<T, float>) {
    if (bf16_) bf16_->pack_direction(direction_);
  }
  for_chunks(fisher_, [&](Index panel, int worker, T* partial, double*, bool first) {
    if (bf16_) return rounded_product(panel, worker, partial, first);
    T* const cache = cache_of(fisher_, panel, worker);
    if (!cached(fisher_, panel)) forward_hidden(fisher_, panel, cache);
    const Panel<T> u = tangent(panel, cache, worker);
    metric_rows(panel, u, worker);
    backward(fisher_, panel, cache, u, worker, partial, first);
  });
  reduce(fisher_, out);
  // The state-independent log std: F = 2 I, whatever the data.
  for (Index a = 0; batch_.log_std_offset >= 0 && a < batch_.actions; ++a) {
    out[batch_.log_std_offset + a] = T(2) * v[batch_.log_std_offset + a];
  }
  for (Index i = 0; damping != 0 && i < batch_.parameters; ++i) out[i] += T(damping) * v[i];
}

template class PolicyProblem<float>;
template class PolicyProblem<double>;

}  // namespace trpo_fast
