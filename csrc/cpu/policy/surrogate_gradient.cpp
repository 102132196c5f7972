#include "cpu/policy/policy_problem.h"

namespace trpo_fast {

// Per row: loss -= w ratio A; delta = d(w ratio log pi)/d outputs A, in place of the outputs.
template <class T>
void PolicyProblem<T>::surrogate_rows(Index panel, const Panel<T>& outputs, double* sums,
                                      int worker) const {
  with_head(head_, [&](auto head) {
    for (Index r = 0; r < all_.rows_in(panel); ++r) {
      const Index row = panel * all_.panel_rows + r;
      T* const o = outputs.contiguous(r, row_buffer(worker));
      for (Index i = 0; i < head.outputs; ++i) old_outputs_[row * head.outputs + i] = o[i];
      if (batch_.fisher_is_all) cache_metric(head, row, o);
      const RowAction<T> action = batch_.action(row);
      const std::uint8_t* const mask = all_.set.mask_row(row);
      const double now = head.log_prob(o, old_scale_, action, mask);
      const double old = batch_.old_log_prob ? batch_.old_log_prob[row] : now;
      row_log_prob_[row] = old;
      const double share = all_.share(row);
      const double gain = share * std::exp(now - old) * double(batch_.advantages[row]);
      sums[0] -= gain;
      for (Index a = 0; a < scales_; ++a) {
        sums[2 + a] += gain * head.log_std_slope(a, o, old_scale_, action);
      }
      head.log_prob_gradient(o, old_scale_, action, mask, gain, o);
      outputs.put_back(r, o);
    }
  });
}

template <class T>
double PolicyProblem<T>::gradient(T* g) {
  for_chunks(all_, [&](Index panel, int worker, T* partial, double* sums, bool first) {
    T* const cache = cache_of(all_, panel, worker);
    forward_hidden(all_, panel, cache);
    const Panel<T> delta = forward_outputs(all_, panel, cache, worker);
    surrogate_rows(panel, delta, sums, worker);
    if (cached(all_, panel)) keep_rounded(all_, panel, cache, worker);
    backward(all_, panel, cache, delta, worker, partial, first);
  });
  reduce(all_, g);
  for (Index a = 0; batch_.log_std_offset >= 0 && a < scales_; ++a) {
    g[batch_.log_std_offset + a] = T(chunk_sum(all_, 2 + a));
  }
  const double loss = chunk_sum(all_, 0);
  if (!batch_.fisher_is_all) prepare_fisher();
  return loss;
}

template class PolicyProblem<float>;
template class PolicyProblem<double>;

}  // namespace trpo_fast
