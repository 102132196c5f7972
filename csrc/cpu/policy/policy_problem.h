// One update's batch at theta_old: what the surrogate gradient, the Fisher product and a
// line-search candidate share. Holds pointers into the caller's tensors and workspace, no memory of
// its own.
#pragma once

#include <algorithm>
#include <atomic>
#include <functional>
#include <optional>
#include <type_traits>

#include "common/heads.h"
#include "cpu/network/packed_network.h"
#include "cpu/parallel.h"
#include "cpu/policy/bf16_fisher.h"

namespace trpo_fast {

// Where a layer's parameters start in the flat vector (in parameters() order); -1: absent or
// frozen.
struct LayerOffsets {
  Index weight, bias;
};

// Observations, and the weight and the mask of each, row by row.
template <class T>
struct RowSet {
  MatrixView<const T> obs;   // [N, O]
  const T* weights;          // [N] >= 0, not all 0, or null
  const std::uint8_t* mask;  // [N, mask_width] or null
  Index mask_width;

  double weight(Index row) const { return weights ? double(weights[row]) : 1.0; }
  const std::uint8_t* mask_row(Index row) const { return mask ? mask + row * mask_width : nullptr; }
};

template <class T>
struct PolicyBatch {
  Layers<T> layers;
  std::vector<LayerOffsets> offsets;
  Index parameters;             // P, the length of flat vectors
  int head_kind;                // its place in Heads
  Index actions;                // A; blocks of a categorical head
  std::vector<Index> nvec;      // sizes of the categorical blocks
  std::vector<HeadPart> parts;  // of a joint head
  const T* log_std;             // [scales] or null
  Index log_std_stride, log_std_offset;
  RowSet<T> rows;         // all rows
  RowSet<T> fisher_rows;  // those that count for F, where they are not all
  bool fisher_is_all;
  RowAction<T> first_action;
  Index action_row_stride;
  const T* advantages;         // [N]
  const double* old_log_prob;  // [N] or null: the policy's own at theta_old
  bool kl_new_old;             // KL(new || old) instead of KL(old || new)
  Index cache_bytes;  // activations are kept for the whole batch up to this size, recomputed beyond
  int threads;
  int bf16_parts;  // of the Fisher products' operands (bf16_fisher.h); 0: they stay as they are

  Head head() const {
    return {head_kind, layers.back().out, actions, nvec.data(), parts.data(), Index(parts.size())};
  }
  RowAction<T> action(Index row) const {
    const Index at = row * action_row_stride;
    return {first_action.real + (first_action.real ? at : 0),
            first_action.category + (first_action.category ? at : 0), first_action.stride};
  }
};

// A panel's activations are fetched ahead where they leave most of L2 to the weights.
constexpr Index kAheadElements = 64 * 1024;

// Rows are worked on in panels that stay in cache, panels in chunks. Chunks, not threads, own
// partial sums, which are added in order: the result has the same bits for any number of threads.
template <class T>
struct RowPlan {
  RowSet<T> set;
  double weight_sum;
  Index rows, panel_rows, panels, chunks;

  RowPlan(const RowSet<T>& set, Index panel_rows, Index parameters);
  Index first_panel(Index chunk) const { return panels * chunk / chunks; }
  Index rows_in(Index panel) const {
    const Index left = rows - panel * panel_rows;
    return left < panel_rows ? left : panel_rows;
  }
  MatrixView<const T> obs(Index panel) const {
    MatrixView<const T> x = set.obs;
    x.data += panel * panel_rows * x.row_stride;
    x.rows = rows_in(panel);
    return x;
  }
  // A row's share of a mean.
  double share(Index row) const { return set.weight(row) / weight_sum; }
};

// A row whose activations are kept, by its panel.
struct KeptRow {
  Index panel, row;
};

// A hidden layer's activation, and its slope where that is not cheap, in a panel's cache.
struct CachedLayer {
  Slabs slabs;
  Index value, slope;  // offsets; slope -1: from the value
};

// The constants of a head at some log std, for `kl` and `log_prob`. [scales] each.
struct ScaleBuffer {
  double *log_std, *inv_std;
  operator GaussianScale() const { return {log_std, inv_std}; }
};

template <class T>
class PolicyProblem {
 public:
  PolicyProblem(const PolicyBatch<T>& batch, void* workspace);
  static std::size_t workspace_bytes(const PolicyBatch<T>& batch);

  // Loss -sum(w ratio A) / sum w at theta_old, and the ascent direction g [P].
  double gradient(T* g);
  // out = F v + damping v [P]. After gradient() or prepare_fisher().
  void fisher_product(const T* v, double damping, T* out);
  // The same in two halves, for when v'(F + damping)v may be all that is needed: it, and what is
  // left of the product with that v. Where activations are kept for all rows: else the second half
  // would compute them again.
  bool fisher_halves() const { return cached_panels_ == fisher_.panels; }
  double damped_quadratic(const T* v, double damping);
  void finish_fisher_product(const T* v, double damping, T* out);
  // The caches of the Fisher rows, where gradient() is not called or visits other rows.
  void prepare_fisher();
  // The Fisher's rows whose activations are kept, and of `rows` evenly strided ones the i-th.
  Index kept_rows() const { return std::min(cached_panels_ * fisher_.panel_rows, fisher_.rows); }
  KeptRow kept_row(Index i, Index rows) const {
    const Index row = i * kept_rows() / rows, panel = row / fisher_.panel_rows;
    return {panel, row - panel * fisher_.panel_rows};
  }
  bool weighted() const { return fisher_.set.weights != nullptr; }
  double kept_weight(const KeptRow& kept) const {
    return fisher_.set.weight(kept.panel * fisher_.panel_rows + kept.row);
  }
  // A layer's inputs first .. first + count, inside one slab of them, of one such row.
  void kept_input(std::size_t layer, const KeptRow& kept, Index first, Index count, T* to) const;
  // A whole slab of them, padded, where they are kept as single bfloat16, else null.
  const Bf16* kept_rounded(std::size_t layer, const KeptRow& kept, Index slab) const;
  // Mean loss and mean KL at theta [P]. After gradient().
  struct Candidate {
    double loss, kl;
  };
  Candidate evaluate(const T* theta);
  // A number that decides: the same for everybody who takes part, here nobody else.
  static double agreed(double number) { return number; }
  // Asks between panels, on the caller's thread, whether to stop: the call then returns soon, and
  // what it and later ones compute is of no use. Null asks nothing.
  void stop_if(std::function<bool()> asked) {
    asked_ = std::move(asked);
    stopped_ = false;
  }

 private:
  using Plan = RowPlan<T>;
  // f(bf16_), where it takes the Fisher products over; returns whether it does. Only float has it:
  // f is not compiled for double.
  template <class Optional, class F>
  static bool where_rounded(Optional& bf16, F&& f) {
    if constexpr (std::is_same_v<T, float>) {
      if (bf16) f(*bf16);
      return bf16.has_value();
    }
    return false;
  }
  PolicyProblem(const PolicyBatch<T>& batch, Arena&& arena);
  void layout(Arena& arena);
  void pack_backward();
  Layers<T> layers_at(const T* flat, bool zero_if_frozen) const;
  void set_scale(const ScaleBuffer& scale, const T* log_std, Index stride) const;

  // Panels: where their pieces are.
  T* scratch_of(int worker) const { return scratch_ + worker * scratch_size_; }
  Panel<T> buffer(int worker, int which, const Slabs& slabs) const;
  T* row_buffer(int worker) const { return scratch_of(worker) + scratch_size_ - head_.outputs; }
  bool cached(const Plan& plan, Index panel) const;
  T* cache_of(const Plan& plan, Index panel, int worker) const;
  Panel<T> hidden(T* cache, std::size_t layer) const;
  T* slopes(T* cache, std::size_t layer) const;

  // Panels: what is computed on them.
  void forward_hidden(const Plan& plan, Index panel, T* cache) const;
  Bf16* rounded_cache_of(Index panel, int worker) const;
  void keep_rounded(const Plan& plan, Index panel, T* cache, int worker) const;
  Bf16* rounded_scratch_of(int worker) const;
  Panel<T> forward_outputs(const Plan& plan, Index panel, T* cache, int worker) const;
  template <class H>
  void cache_metric(const H& head, Index row, const T* outputs) const;
  void surrogate_rows(Index panel, const Panel<T>& outputs, double* sums, int worker) const;
  Panel<T> tangent(Index panel, T* cache, int worker) const;
  // J v at a panel's outputs, and J'u added to a chunk's partial sums, in the operands' precision.
  Panel<T> outputs_tangent(Index panel, int worker) const;
  void add_transposed(Index panel, const Panel<T>& u, int worker, T* partial, bool first) const;
  void pack_direction(const T* v);
  void finish_fisher(const T* v, double damping, T* out) const;
  template <class H>
  const T* metric_of(const H&, Index row) const;
  double metric_squares(Index panel, const Panel<T>& zdot, int worker) const;
  void metric_rows(Index panel, const Panel<T>& u, int worker) const;
  Panel<T> kept_outputs(Index panel) const;
  void candidate_rows(Index panel, const Panel<T>& outputs, double* sums, int worker) const;
  // Adds the gradient that the output deltas imply to a chunk's partial sums (`first`: sets them).
  void backward(const Plan& plan, Index panel, T* cache, Panel<T> delta, int worker, T* partial,
                bool first) const;
  void weight_gradient(std::size_t layer, const MatrixView<const T>& x, T* cache,
                       const Panel<T>& delta, T* partial, bool first) const;

  // Chunks: body(panel, worker, partial sums, sums, first panel of the chunk?) for every panel.
  template <class Body>
  void for_chunks(const Plan& plan, Body&& body) const;
  double chunk_sum(const Plan& plan, Index which) const;
  void reduce(const Plan& plan, T* out) const;
  void unpack(std::size_t layer, T* out) const;

  const PolicyBatch<T>& batch_;
  const Kernels<T>& kernels_;
  Head head_;
  Index scales_, metric_width_;  // log stds that are parameters; of a row's metric, 0: it is shared
  Plan all_, fisher_;
  PackedNetwork<T> weights_;           // at theta_old
  PackedNetwork<T> direction_;         // v, or a candidate's theta
  std::optional<Bf16Fisher> bf16_;     // takes the Fisher products over
  std::vector<T*> backward_weights_;   // W as [out][in slabs], by layer; null for the first
  std::vector<CachedLayer> cached_;    // by hidden layer
  std::vector<GradientBlock> blocks_;  // by layer
  Index cache_size_, partial_size_, buffer_size_, scratch_size_, cached_panels_;
  T *caches_, *metric_, *inv_variance_, *old_outputs_, *partials_, *scratch_;
  T* fisher_outputs_;  // between the halves of a product, panel by panel
  Bf16 *rounded_caches_, *rounded_scratch_;
  double *row_log_prob_, *chunk_sums_;
  ScaleBuffer old_scale_, new_scale_;
  std::function<bool()> asked_;
  mutable std::atomic<bool> stopped_{false};
};

template <class T>
template <class Body>
void PolicyProblem<T>::for_chunks(const Plan& plan, Body&& body) const {
  const Index sums = 2 + scales_;
  parallel_for(plan.chunks, batch_.threads, [&](Index chunk, int worker) {
    double* const chunk_sums = chunk_sums_ + chunk * sums;
    for (Index i = 0; i < sums; ++i) chunk_sums[i] = 0;
    const Index begin = plan.first_panel(chunk), end = plan.first_panel(chunk + 1);
    for (Index panel = begin; panel < end; ++panel) {
      if (worker == 0 && asked_ && asked_()) stopped_ = true;
      if (stopped_.load(std::memory_order_relaxed)) return;
      body(panel, worker, partials_ + chunk * partial_size_, chunk_sums, panel == begin);
    }
  });
}

template <class T>
template <class H>
void PolicyProblem<T>::cache_metric(const H& head, Index row, const T* outputs) const {
  if constexpr (!H::kSharedMetric) {
    head.metric_cache(outputs, old_scale_, fisher_.set.mask_row(row),
                      metric_ + row * metric_width_);
  }
}

// F + damping I, for conjugate gradients.
template <class T, class Problem = PolicyProblem<T>>
struct DampedFisher {
  Problem& problem;
  double damping;

  void product(const T* p, T* Ap) const { problem.fisher_product(p, damping, Ap); }
  bool halves() const { return problem.fisher_halves(); }
  double curvature(const T* p) const { return problem.damped_quadratic(p, damping); }
  void finish(const T* p, T* Ap) const { problem.finish_fisher_product(p, damping, Ap); }
  double agreed(double number) const { return problem.agreed(number); }
};

}  // namespace trpo_fast
