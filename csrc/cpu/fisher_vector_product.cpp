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

template <class T>
void PolicyProblem<T>::fisher_product(const T* v, double damping, T* out) {
  direction_.pack(layers_at(v, true));
  for_chunks(fisher_, [&](Index panel, int worker, T* partial, double*, bool first) {
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
