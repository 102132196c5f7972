// One candidate of the line search: a forward pass, mean loss and mean KL together, nothing stored.
#include "cpu/network/mlp_forward.h"
#include "cpu/policy/policy_problem.h"

namespace trpo_fast {

template <class T>
void PolicyProblem<T>::candidate_rows(Index panel, const Panel<T>& outputs, double* sums,
                                      int worker) const {
  with_head(head_, [&](auto head) {
    for (Index r = 0; r < all_.rows_in(panel); ++r) {
      const Index row = panel * all_.panel_rows + r;
      const T* const o = outputs.contiguous(r, row_buffer(worker));
      const T* const old = old_outputs_ + row * head.outputs;
      const std::uint8_t* const mask = all_.set.mask_row(row);
      const double now = head.log_prob(o, new_scale_, batch_.action(row), mask);
      const double share = all_.share(row);
      sums[0] -= share * std::exp(now - row_log_prob_[row]) * double(batch_.advantages[row]);
      sums[1] += share * (batch_.kl_new_old ? head.row_kl(o, old, old_scale_, mask)
                                            : head.row_kl(old, o, new_scale_, mask));
    }
  });
}

template <class T>
typename PolicyProblem<T>::Candidate PolicyProblem<T>::evaluate(const T* theta) {
  direction_.pack(layers_at(theta, false), batch_.threads);
  const bool moves = batch_.log_std_offset >= 0;
  if (batch_.log_std != nullptr) {
    set_scale(new_scale_, moves ? theta + batch_.log_std_offset : batch_.log_std,
              moves ? 1 : batch_.log_std_stride);
  }
  for_chunks(all_, [&](Index panel, int worker, T*, double* sums, bool) {
    const MatrixView<const T> x = all_.obs(panel);
    T* const panels[2] = {buffer(worker, 0, Slabs(1)).data, buffer(worker, 1, Slabs(1)).data};
    const Panel<T> outputs =
        forward_panel<T>(kernels_, direction_, x, x.rows, all_.panel_rows, panels);
    candidate_rows(panel, outputs, sums, worker);
  });
  const GaussianScale first = batch_.kl_new_old ? new_scale_ : old_scale_;
  const GaussianScale second = batch_.kl_new_old ? old_scale_ : new_scale_;
  const double shared = with_head(head_, [&](auto head) { return head.shared_kl(first, second); });
  return {chunk_sum(all_, 0), chunk_sum(all_, 1) + shared};
}

template class PolicyProblem<float>;
template class PolicyProblem<double>;

}  // namespace trpo_fast
