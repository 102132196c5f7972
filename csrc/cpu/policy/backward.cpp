// From deltas at the outputs to the gradient of the parameters: the half that the surrogate
// gradient and the Fisher product share.
#include <algorithm>

#include "cpu/network/slopes.h"
#include "cpu/policy/policy_problem.h"

namespace trpo_fast {
namespace {

// A task of `reduce`: enough elements that a thread is worth waking for it.
constexpr Index kReduceElements = 16384;

}  // namespace

// zdot_l = a_{l-1} V_l + c_l + adot_{l-1} W_l;  adot_l = phi'(z_l) zdot_l; returns zdot of the
// outputs.
template <class T>
Panel<T> PolicyProblem<T>::tangent(Index panel, T* cache, int worker) const {
  const MatrixView<const T> x = fisher_.obs(panel);
  Panel<T> previous = buffer(worker, 1, Slabs(1));
  for (std::size_t l = 0; l < weights_.layers.size(); ++l) {
    const PackedLayer<T>&v = direction_.layers[l], &w = weights_.layers[l];
    const Panel<T> zdot = buffer(worker, int(l % 2), v.out_slabs);
    Product<T> p = into<T>(zdot, x.rows, v.bias);
    add_term<T>(p, l == 0 ? rows_of(x) : rows_of(hidden(cache, l - 1)),
                packed<T>(v.weight, v.out_slabs, v.in), v.in);
    if (l > 0) add_term<T>(p, rows_of(previous), packed<T>(w.weight, w.out_slabs, w.in), w.in);
    if (l < cached_.size()) {
      finish_with_slope<T>(p, w.activation, hidden(cache, l).data, slopes(cache, l));
    }
    // The next panel's activations come from L3 or memory, which the hardware sees too late.
    if (l + 1 == cached_.size() && cached(fisher_, panel + 1) && cache_size_ <= kAheadElements) {
      p.ahead = cache + cache_size_;
      p.ahead_count = cache_size_;
    }
    kernels_.product(p);
    previous = zdot;
  }
  return previous;
}

template <class T>
void PolicyProblem<T>::weight_gradient(std::size_t l, const MatrixView<const T>& x, T* cache,
                                       const Panel<T>& delta, T* partial, bool first) const {
  const GradientBlock& block = blocks_[l];
  Product<T> p = sum_into(partial + block.weight, block.major, block.minor, first);
  // gW_l = a_{l-1}' delta_l, or its transpose
  if (block.out_major) {
    add_term<T>(p, features_of(delta), columns_of(hidden(cache, l - 1)), x.rows);
  } else {
    const LeftOperand<T> input = l == 0 ? features_of(x) : features_of(hidden(cache, l - 1));
    add_term<T>(p, input, columns_of(delta), x.rows);
  }
  kernels_.product(p);
  T* const bias = partial + block.bias;
  if (first) std::fill_n(bias, delta.slabs.size(1), T(0));
  for (Index slab = 0; slab < delta.slabs.count; ++slab) {
    kernels_.column_sums(delta.data + slab * delta.slab_stride(), x.rows, delta.slabs.width,
                         bias + slab * delta.slabs.width);
  }
}

template <class T>
void PolicyProblem<T>::backward(const Plan& plan, Index panel, T* cache, Panel<T> delta, int worker,
                                T* partial, bool first) const {
  const MatrixView<const T> x = plan.obs(panel);
  int spare = delta.data == buffer(worker, 0, delta.slabs).data ? 1 : 0;
  for (std::size_t l = weights_.layers.size(); l-- > 0; spare = 1 - spare) {
    weight_gradient(l, x, cache, delta, partial, first);
    if (l == 0) return;
    // delta_{l-1} = (delta_l W_l') phi'(z_{l-1})
    const Panel<T> below = buffer(worker, spare, cached_[l - 1].slabs);
    const Index out = weights_.layers[l].out;
    Product<T> p = into<T>(below, x.rows, nullptr);
    add_term<T>(p, rows_of(delta), packed<T>(backward_weights_[l], below.slabs, out), out);
    finish_with_slope<T>(p, weights_.layers[l - 1].activation, hidden(cache, l - 1).data,
                         slopes(cache, l - 1));
    kernels_.product(p);
    delta = below;
  }
}

template <class T>
double PolicyProblem<T>::chunk_sum(const Plan& plan, Index which) const {
  double sum = 0;
  for (Index chunk = 0; chunk < plan.chunks; ++chunk) {
    sum += chunk_sums_[chunk * (2 + scales_) + which];
  }
  return sum;
}

// Adds the chunks' partial sums, in their order, and lays them out as the flat vector [P].
template <class T>
void PolicyProblem<T>::reduce(const Plan& plan, T* out) const {
  const Index tasks = (partial_size_ + kReduceElements - 1) / kReduceElements;
  parallel_for(tasks, batch_.threads, [&](Index task, int) {
    const Index begin = task * kReduceElements;
    const Index end = std::min(begin + kReduceElements, partial_size_);
    for (Index chunk = 1; chunk < plan.chunks; ++chunk) {
      const T* partial = partials_ + chunk * partial_size_;
      for (Index i = begin; i < end; ++i) partials_[i] += partial[i];
    }
  });
  std::fill_n(out, batch_.parameters, T(0));
  for (std::size_t l = 0; l < blocks_.size(); ++l) unpack(l, out);
}

template <class T>
void PolicyProblem<T>::unpack(std::size_t l, T* out) const {
  const GradientBlock& block = blocks_[l];
  const LayerOffsets& at = batch_.offsets[l];
  const Index in = weights_.layers[l].in, outs = weights_.layers[l].out, width = block.minor.width;
  if (at.bias >= 0) std::copy_n(partials_ + block.bias, outs, out + at.bias);
  if (at.weight < 0) return;
  T* const weight = out + at.weight;  // [outs, in]
  const int wanted = block.minor.count > kOwnSlabs ? batch_.threads : 1;
  parallel_for(block.minor.count, wanted, [&](Index slab, int) {
    const T* from = partials_ + block.weight + slab * width * block.major;
    const Index first = slab * width, columns = std::min(width, block.minor.features - first);
    if (block.out_major) {
      for (Index o = 0; o < outs; ++o)
        std::copy_n(from + o * width, columns, weight + o * in + first);
      return;
    }
    constexpr Index kTile = 16;
    for (Index start = 0; start < in; start += kTile) {
      const Index stop = std::min(start + kTile, in);
      for (Index c = 0; c < columns; ++c) {
        for (Index i = start; i < stop; ++i) weight[(first + c) * in + i] = from[i * width + c];
      }
    }
  });
}

template class PolicyProblem<float>;
template class PolicyProblem<double>;

}  // namespace trpo_fast
