#include "cpu/policy/policy_problem.h"

#include <algorithm>

#include "cpu/kernels/dispatch.h"

namespace trpo_fast {
namespace {

// Rows of a panel: enough to amortise the loads and stores of the weight gradient, few enough that
// the panels of a narrow network stay in L1/L2. A multiple of the kernels' row tiles (6 and 12).
constexpr Index kPanelRows = 96;
// A wide network streams its weights from L3 or memory once a panel: larger panels stream less.
constexpr Index kWidePanelRows = 384;
constexpr Index kWide = 512;
// Rows a chunk should have at least, so that its partial sums cost little beside its products, and
// the most chunks, and the most memory that their partial sums may take.
constexpr Index kChunkRows = 256;
constexpr Index kMaxChunks = 32;
constexpr Index kPartialBytes = Index(32) << 20;
constexpr Index kMinChunks = 4;

template <class T>
Index panel_rows(const PolicyBatch<T>& batch) {
  Index widest = 0;
  for (const Layer<T>& layer : batch.layers) widest = std::max(widest, layer.out);
  return widest >= kWide ? kWidePanelRows : kPanelRows;
}

}  // namespace

template <class T>
RowPlan<T>::RowPlan(const RowSet<T>& set_, Index panel_rows_, Index parameters)
    : set(set_),
      weight_sum(0),
      rows(set_.obs.rows),
      panel_rows(panel_rows_),
      panels((rows + panel_rows - 1) / panel_rows) {
  const Index by_memory = kPartialBytes / (parameters * Index(sizeof(float)) + 1);
  const Index most = std::clamp(by_memory, kMinChunks, kMaxChunks);
  // A small batch is still worth two threads.
  const Index wanted = std::max(rows / kChunkRows, Index(2));
  chunks = std::min({wanted, most, panels});
}

template <class T>
PolicyProblem<T>::PolicyProblem(const PolicyBatch<T>& batch, void* workspace)
    : PolicyProblem(batch, Arena(workspace)) {
  weights_.pack(batch.layers, batch.threads);
  pack_backward();
  where_rounded(bf16_, [&](auto& bf16) { bf16.pack_weights(weights_, backward_weights_); });
  if (batch.log_std != nullptr) set_scale(old_scale_, batch.log_std, batch.log_std_stride);
  for (Index a = 0; batch.log_std != nullptr && a < scales_; ++a) {
    inv_variance_[a] = T(old_scale_.inv_std[a] * old_scale_.inv_std[a]);
  }
  for (Plan* plan : {&all_, &fisher_}) {
    plan->weight_sum = plan->set.weights ? 0 : double(plan->rows);
    for (Index row = 0; plan->set.weights && row < plan->rows; ++row) {
      plan->weight_sum += plan->set.weight(row);
    }
  }
}

template <class T>
PolicyProblem<T>::PolicyProblem(const PolicyBatch<T>& batch, Arena&& arena)
    : batch_(batch),
      kernels_(dense_kernels().get<T>()),
      head_(batch.head()),
      scales_(scales_of(head_)),
      metric_width_(metric_width_of(head_)),
      all_(batch.rows, panel_rows(batch), batch.parameters),
      fisher_(batch.fisher_is_all ? batch.rows : batch.fisher_rows, panel_rows(batch),
              batch.parameters),
      weights_(batch.layers, arena),
      direction_(batch.layers, arena) {
  layout(arena);
}

template <class T>
std::size_t PolicyProblem<T>::workspace_bytes(const PolicyBatch<T>& batch) {
  Arena arena(nullptr);
  const PolicyProblem<T> counted(batch, static_cast<Arena&&>(arena));
  return arena.used();
}

template <class T>
void PolicyProblem<T>::layout(Arena& arena) {
  const Index rows = all_.panel_rows, outputs = head_.outputs;
  cache_size_ = partial_size_ = 0;
  Index widest = 0;
  for (std::size_t l = 0; l < batch_.layers.size(); ++l) {
    const Layer<T>& layer = batch_.layers[l];
    const Slabs in(layer.in), out(layer.out);
    widest = std::max(widest, out.size(1));
    backward_weights_.push_back(l > 0 ? arena.take<T>(in.size(layer.out)) : nullptr);
    // Work is by padded columns; observations are not padded, so the first layer has no choice.
    const bool out_major = l > 0 && in.size(layer.out) < out.size(layer.in);
    GradientBlock block{out_major, out_major ? layer.out : layer.in, out_major ? in : out,
                        partial_size_, 0};
    block.bias = block.weight + block.minor.size(block.major);
    partial_size_ = block.bias + out.size(1);
    blocks_.push_back(block);
    if (l + 1 == batch_.layers.size()) break;
    const bool needs_slope = !slope_from_output(layer.activation);
    const Index value = cache_size_, size = out.size(rows);
    cached_.push_back({out, value, needs_slope ? value + size : Index(-1)});
    cache_size_ += needs_slope ? 2 * size : size;
  }
  if constexpr (std::is_same_v<T, float>) {
    if (batch_.bf16_parts > 0) {
      bf16_.emplace(weights_, rows, batch_.bf16_parts, batch_.threads, arena);
    }
  }
  const Index rounded_size = bf16_ ? bf16_->cache_size() : 0;
  const Index panel_bytes =
      bf16_ ? rounded_size * Index(sizeof(Bf16)) : cache_size_ * Index(sizeof(T));
  cached_panels_ = std::min(fisher_.panels, batch_.cache_bytes / std::max(panel_bytes, Index(1)));
  caches_ = arena.take<T>(bf16_ ? 0 : cached_panels_ * cache_size_);
  rounded_caches_ = arena.take<Bf16>(cached_panels_ * rounded_size);
  rounded_scratch_ =
      arena.take<Bf16>(bf16_ ? (rounded_size + bf16_->scratch_size()) * batch_.threads : 0);
  const Index outputs_size = weights_.layers.back().out_slabs.size(rows);
  fisher_outputs_ = arena.take<T>(fisher_halves() ? fisher_.panels * outputs_size : 0);
  metric_ = arena.take<T>(fisher_.rows * metric_width_);
  inv_variance_ = arena.take<T>(scales_);
  old_outputs_ = arena.take<T>(all_.rows * outputs);
  row_log_prob_ = arena.take<double>(all_.rows);
  const Index chunks = std::max(all_.chunks, fisher_.chunks);
  partials_ = arena.take<T>(chunks * partial_size_);
  chunk_sums_ = arena.take<double>(chunks * (2 + scales_));
  for (ScaleBuffer* scale : {&old_scale_, &new_scale_}) {
    scale->log_std = arena.take<double>(scales_);
    scale->inv_std = arena.take<double>(scales_);
  }
  // A cache for a panel that has none, two buffers that take turns, and a row of outputs.
  buffer_size_ = widest * rows;
  scratch_size_ = round_up(cache_size_ + 2 * buffer_size_ + outputs, kPadding);
  scratch_ = arena.take<T>(scratch_size_ * batch_.threads);
}

template <class T>
void PolicyProblem<T>::pack_backward() {
  for (std::size_t l = 1; l < batch_.layers.size(); ++l) {
    const Layer<T>& layer = batch_.layers[l];
    const Slabs in(layer.in);
    const int wanted = in.count > kOwnSlabs ? batch_.threads : 1;
    parallel_for(in.count, wanted, [&](Index slab, int) {
      T* to = backward_weights_[l] + slab * in.width * layer.out;
      const Index first = slab * in.width, columns = std::min(in.width, layer.in - first);
      for (Index o = 0; o < layer.out; ++o, to += in.width) {
        const T* row = layer.weight + o * layer.weight_row_stride + first * layer.weight_col_stride;
        for (Index c = 0; c < columns; ++c) to[c] = row[c * layer.weight_col_stride];
        std::fill(to + columns, to + in.width, T(0));
      }
    });
  }
}

// The network's layers with parameters read from a flat vector.
template <class T>
Layers<T> PolicyProblem<T>::layers_at(const T* flat, bool zero_if_frozen) const {
  Layers<T> layers = batch_.layers;
  for (std::size_t l = 0; l < layers.size(); ++l) {
    Layer<T>& layer = layers[l];
    const LayerOffsets& at = batch_.offsets[l];
    if (at.weight >= 0) {
      layer.weight = flat + at.weight;
      layer.weight_row_stride = layer.in;
      layer.weight_col_stride = 1;
    } else if (zero_if_frozen) {
      layer.weight = nullptr;
    }
    if (at.bias >= 0) {
      layer.bias = flat + at.bias;
      layer.bias_stride = 1;
    } else if (zero_if_frozen) {
      layer.bias = nullptr;
    }
  }
  return layers;
}

template <class T>
void PolicyProblem<T>::set_scale(const ScaleBuffer& scale, const T* log_std, Index stride) const {
  for (Index a = 0; a < scales_; ++a) {
    scale.log_std[a] = double(log_std[a * stride]);
    scale.inv_std[a] = std::exp(-scale.log_std[a]);
  }
}

template <class T>
Panel<T> PolicyProblem<T>::buffer(int worker, int which, const Slabs& slabs) const {
  return {scratch_of(worker) + cache_size_ + which * buffer_size_, slabs, all_.panel_rows};
}

template <class T>
bool PolicyProblem<T>::cached(const Plan& plan, Index panel) const {
  return (batch_.fisher_is_all || &plan == &fisher_) && panel < cached_panels_;
}

// Where a panel's activations are kept for the whole update, or a worker's scratch.
template <class T>
T* PolicyProblem<T>::cache_of(const Plan& plan, Index panel, int worker) const {
  return cached(plan, panel) && !bf16_ ? caches_ + panel * cache_size_ : scratch_of(worker);
}

template <class T>
Panel<T> PolicyProblem<T>::hidden(T* cache, std::size_t layer) const {
  return {cache + cached_[layer].value, cached_[layer].slabs, all_.panel_rows};
}

template <class T>
T* PolicyProblem<T>::slopes(T* cache, std::size_t layer) const {
  return cached_[layer].slope < 0 ? nullptr : cache + cached_[layer].slope;
}

template <class T>
void PolicyProblem<T>::kept_input(std::size_t layer, const KeptRow& kept, Index first, Index count,
                                  T* to) const {
  if (layer == 0) {
    const MatrixView<const T> x = fisher_.obs(kept.panel);
    for (Index c = 0; c < count; ++c) {
      to[c] = x.data[kept.row * x.row_stride + (first + c) * x.col_stride];
    }
    return;
  }
  const bool rounded = where_rounded(bf16_, [&](const auto& bf16) {
    const Bf16* const cache = rounded_caches_ + kept.panel * bf16.cache_size();
    bf16.kept_input(layer, kept.row, first, count, cache, to);
  });
  if (rounded) return;
  const Panel<T> a = hidden(caches_ + kept.panel * cache_size_, layer - 1);
  std::copy_n(&a.at(kept.row, first), count, to);
}

template <class T>
const Bf16* PolicyProblem<T>::kept_rounded(std::size_t layer, const KeptRow& kept,
                                           Index slab) const {
  if (!bf16_) return nullptr;
  const Bf16* const cache = rounded_caches_ + kept.panel * bf16_->cache_size();
  return bf16_->kept_slab(layer, kept.row, slab, cache);
}

template <class T>
void PolicyProblem<T>::forward_hidden(const Plan& plan, Index panel, T* cache) const {
  const MatrixView<const T> x = plan.obs(panel);
  LeftOperand<T> input = rows_of(x);
  for (std::size_t l = 0; l < cached_.size(); ++l) {
    const PackedLayer<T>& layer = weights_.layers[l];
    const Panel<T> z = hidden(cache, l);
    Product<T> p = into<T>(z, x.rows, layer.bias);
    add_term<T>(p, input, packed<T>(layer.weight, layer.out_slabs, layer.in), layer.in);
    kernels_.product(p);
    activate_rows<T>(kernels_, layer, z, x.rows, slopes(cache, l));
    input = rows_of(z);
  }
}

// The last layer, from the cached activations of the one before.
template <class T>
Panel<T> PolicyProblem<T>::forward_outputs(const Plan& plan, Index panel, T* cache,
                                           int worker) const {
  const PackedLayer<T>& layer = weights_.layers.back();
  const MatrixView<const T> x = plan.obs(panel);
  const Panel<T> z = buffer(worker, 0, layer.out_slabs);
  Product<T> p = into<T>(z, x.rows, layer.bias);
  const LeftOperand<T> input =
      cached_.empty() ? rows_of(x) : rows_of(hidden(cache, cached_.size() - 1));
  add_term<T>(p, input, packed<T>(layer.weight, layer.out_slabs, layer.in), layer.in);
  kernels_.product(p);
  return z;
}

template struct RowPlan<float>;
template struct RowPlan<double>;
template class PolicyProblem<float>;
template class PolicyProblem<double>;

}  // namespace trpo_fast
