#include "cpu/network/value_fit.h"

#include <algorithm>
#include <cmath>

#include "cpu/kernels/dispatch.h"
#include "cpu/network/slopes.h"
#include "cpu/parallel.h"

namespace trpo_fast {
namespace {

// Rows of a chunk of a minibatch: half of a usual one of 128, so that two threads share it. Larger
// minibatches have more chunks, up to a bound on what adding their gradients costs.
constexpr Index kChunkRows = 64;
constexpr Index kMaxChunks = 8;
constexpr Index kGradientBytes = Index(32) << 20;
// Rows worked on at a time; a multiple of the kernels' row tiles (6 and 12) where a chunk has more.
constexpr Index kPanelRows = 96;

// The hidden layers: the last one has a single output, and is kept as the row of its weights.
template <class T>
Layers<T> hidden_of(const Layers<T>& layers) {
  return {layers.begin(), layers.end() - 1};
}

template <class T>
PackedNetwork<T> without_memory(const Layers<T>& layers) {
  Arena none(nullptr);
  return PackedNetwork<T>(hidden_of(layers), none);
}

}  // namespace

template <class T>
ValueFit<T>::ValueFit(const Layers<T>& layers, Index batch_rows, int threads, Arena&& arena)
    : kernels_(dense_kernels().get<T>()),
      layers_(layers),
      batch_rows_(batch_rows),
      threads_(threads),
      size_(0),
      network_(without_memory(layers)) {
  Index widest = 0, scratch = 0;
  const auto place = [](Index& end, Index count) {
    const Index at = end;
    end += round_up(count, kPadding);
    return at;
  };
  inputs_ = place(scratch, kPanelRows * layers.front().in);
  values_ = place(scratch, kPanelRows);
  for (std::size_t l = 0; l + 1 < layers.size(); ++l) {
    const Layer<T>& layer = layers[l];
    const Slabs in(layer.in), out(layer.out);
    const Index weight = place(size_, out.size(layer.in));
    offsets_.push_back({weight, place(size_, out.size(1))});
    transposed_.push_back(l > 0 ? arena.take<T>(in.size(layer.out)) : nullptr);
    widest = std::max(widest, out.size(1));
    const Index value = place(scratch, out.size(kPanelRows));
    const bool cheap = slope_from_output(layer.activation);
    hidden_.push_back({value, cheap ? Index(-1) : place(scratch, out.size(kPanelRows))});
  }
  const Index row = place(size_, Slabs(layers.back().in).size(1));
  offsets_.push_back({row, place(size_, 1)});
  for (Index& buffer : buffers_) buffer = place(scratch, widest * kPanelRows);
  scratch_size_ = scratch;
  for (T** flat : {&parameters_, &exp_avg_, &exp_avg_sq_}) *flat = arena.take<T>(size_);
  gradients_ = arena.take<T>(size_ * chunks_of(batch_rows));
  errors_ = arena.take<double>(chunks_of(batch_rows));
  scratch_ = arena.take<T>(scratch_size_ * threads);
}

template <class T>
ValueFit<T>::ValueFit(const Layers<T>& parameters, const Layers<T>& exp_avg,
                      const Layers<T>& exp_avg_sq, Index batch_rows, int threads, void* workspace)
    : ValueFit(parameters, batch_rows, threads, Arena(workspace)) {
  network_ = read(parameters, parameters_);
  read(exp_avg, exp_avg_);
  read(exp_avg_sq, exp_avg_sq_);
  // Products leave columns past the features alone, and whole vectors are stepped and checked.
  std::fill_n(gradients_, size_ * chunks_of(batch_rows), T(0));
  transpose_weights();
}

template <class T>
std::size_t ValueFit<T>::workspace_bytes(const Layers<T>& parameters, Index batch_rows,
                                         int threads) {
  Arena arena(nullptr);
  const ValueFit<T> counted(parameters, batch_rows, threads, static_cast<Arena&&>(arena));
  return arena.used();
}

template <class T>
PackedNetwork<T> ValueFit<T>::read(const Layers<T>& layers, T* flat) const {
  std::fill_n(flat, size_, T(0));
  PackedNetwork<T> network = without_memory(layers);
  for (std::size_t l = 0; l < network.layers.size(); ++l) {
    network.layers[l].weight = flat + offsets_[l].weight;
    network.layers[l].bias = flat + offsets_[l].bias;
  }
  network.pack(hidden_of(layers));
  const Layer<T>& last = layers.back();
  for (Index i = 0; i < last.in; ++i) {
    flat[offsets_.back().weight + i] = last.weight[i * last.weight_col_stride];
  }
  flat[offsets_.back().bias] = last.bias == nullptr ? T(0) : last.bias[0];
  return network;
}

template <class T>
Index ValueFit<T>::chunks_of(Index rows) const {
  const Index by_memory = kGradientBytes / (size_ * Index(sizeof(T)));
  return std::clamp(rows / kChunkRows, Index(1), std::clamp(by_memory, Index(2), kMaxChunks));
}

template <class T>
void ValueFit<T>::transpose_weights() const {
  constexpr Index kTile = kPadding;  // tiles never cross a slab
  for (std::size_t l = 1; l < network_.layers.size(); ++l) {
    const PackedLayer<T>& layer = network_.layers[l];
    const Slabs in(layer.in);
    for (Index o = 0; o < layer.out; o += kTile) {
      const Index outs = std::min(kTile, layer.out - o), width = layer.out_slabs.width;
      const T* from = layer.weight + o / width * width * layer.in + o % width;  // [in][width]
      for (Index i = 0; i < in.size(1); i += kTile) {
        T* to = transposed_[l] + i / in.width * in.width * layer.out + o * in.width + i % in.width;
        if (outs == kTile && i + kTile <= layer.in) {
          kernels_.transpose(from + i * width, width, to, in.width);
          continue;
        }
        for (Index b = 0; b < outs; ++b) {
          for (Index a = 0; a < kTile; ++a) {
            to[b * in.width + a] = i + a < layer.in ? from[(i + a) * width + b] : T(0);
          }
        }
      }
    }
  }
}

template <class T>
void ValueFit<T>::gather(const RegressionRows<T>& rows, Index first, Index count, T* x) const {
  const Index width = rows.x.cols;
  for (Index r = 0; r < count; ++r) {
    const T* from = rows.x.data + rows.order[first + r] * rows.x.row_stride;
    for (Index i = 0; i < width; ++i) x[r * width + i] = from[i * rows.x.col_stride];
  }
}

template <class T>
Panel<T> ValueFit<T>::panel(int worker, Index offset, const Slabs& slabs) const {
  return {scratch_ + worker * scratch_size_ + offset, slabs, kPanelRows};
}

template <class T>
Panel<T> ValueFit<T>::hidden(int worker, std::size_t layer) const {
  return panel(worker, hidden_[layer].value, network_.layers[layer].out_slabs);
}

template <class T>
T* ValueFit<T>::slopes(int worker, std::size_t layer) const {
  if (hidden_[layer].slope < 0) return nullptr;
  return scratch_ + worker * scratch_size_ + hidden_[layer].slope;
}

template <class T>
T* ValueFit<T>::forward(const MatrixView<const T>& x, int worker) const {
  LeftOperand<T> input = rows_of(x);
  for (std::size_t l = 0; l < network_.layers.size(); ++l) {
    const PackedLayer<T>& layer = network_.layers[l];
    const Panel<T> out = hidden(worker, l);
    Product<T> p = into<T>(out, x.rows, layer.bias);
    add_term<T>(p, input, packed<T>(layer.weight, layer.out_slabs, layer.in), layer.in);
    kernels_.product(p);
    activate_rows<T>(kernels_, layer, out, x.rows, slopes(worker, l));
    input = rows_of(out);
  }
  // V = a w + b: a product would compute a whole vector of columns for this one.
  T* const values = scratch_ + worker * scratch_size_ + values_;
  std::fill_n(values, x.rows, parameters_[offsets_.back().bias]);
  const RightOperand<T> a = last_inputs(x, worker);
  const T* const w = parameters_ + offsets_.back().weight;
  const Slabs in(layers_.back().in);
  for (Index slab = 0; slab < in.count; ++slab) {
    kernels_.row_dots(a.data + slab * a.slab_stride, x.rows, a.k_stride, w + slab * in.width,
                      std::min(in.width, in.features - slab * in.width), values);
  }
  return values;
}

template <class T>
RightOperand<T> ValueFit<T>::last_inputs(const MatrixView<const T>& x, int worker) const {
  if (!hidden_.empty()) return columns_of(hidden(worker, hidden_.size() - 1));
  return {x.data, x.row_stride, Slabs(x.cols).width};
}

template <class T>
void ValueFit<T>::last_gradient(const RightOperand<T>& input, const T* delta, Index rows,
                                T* gradient, bool first) const {
  const Slabs in(layers_.back().in);
  T* const weight = gradient + offsets_.back().weight;
  // gw = delta' a
  Product<T> p = sum_into(weight, 1, in, first);
  add_term<T>(p, {delta, 0, kNoBlock, 0, 1, kNoBlock, 0}, input, rows);
  kernels_.product(p);
  std::fill(weight + in.features, weight + in.size(1), T(0));
  double sum = 0;
  for (Index r = 0; r < rows; ++r) sum += double(delta[r]);
  T& bias = gradient[offsets_.back().bias];
  bias = first ? T(sum) : bias + T(sum);
}

template <class T>
void ValueFit<T>::layer_gradient(std::size_t l, const LeftOperand<T>& input, const Panel<T>& delta,
                                 Index rows, T* gradient, bool first) const {
  const PackedLayer<T>& layer = network_.layers[l];
  // gW_l = a_{l-1}' delta_l, laid out as the packed weights
  Product<T> p = sum_into(gradient + offsets_[l].weight, layer.in, layer.out_slabs, first);
  add_term<T>(p, input, columns_of(delta), rows);
  kernels_.product(p);
  T* const bias = gradient + offsets_[l].bias;
  if (first) std::fill_n(bias, layer.out_slabs.size(1), T(0));
  for (Index slab = 0; slab < delta.slabs.count; ++slab) {
    kernels_.column_sums(delta.data + slab * delta.slab_stride(), rows, delta.slabs.width,
                         bias + slab * delta.slabs.width);
    // A panel's columns past the features hold anything; here they are part of the gradient.
    std::fill(bias + slab * delta.slabs.width + delta.slabs.used(slab),
              bias + (slab + 1) * delta.slabs.width, T(0));
  }
}

template <class T>
void ValueFit<T>::backward(const MatrixView<const T>& x, const T* delta, int worker, T* gradient,
                           bool first) const {
  last_gradient(last_inputs(x, worker), delta, x.rows, gradient, first);
  LeftOperand<T> above{delta, 1, kNoBlock, 0, 0, kNoBlock, 0};  // [rows, outputs]
  const T* weights = parameters_ + offsets_.back().weight;      // [outputs, in slabs]
  Index outputs = 1;
  for (std::size_t l = network_.layers.size(); l-- > 0;) {
    const PackedLayer<T>& layer = network_.layers[l];
    // delta_l = (delta_{l+1} W_{l+1}') phi'(z_l)
    const Panel<T> here = panel(worker, buffers_[l % 2], layer.out_slabs);
    Product<T> p = into<T>(here, x.rows, nullptr);
    add_term<T>(p, above, packed<T>(weights, here.slabs, outputs), outputs);
    finish_with_slope<T>(p, layer.activation, hidden(worker, l).data, slopes(worker, l));
    kernels_.product(p);
    layer_gradient(l, l == 0 ? features_of(x) : features_of(hidden(worker, l - 1)), here, x.rows,
                   gradient, first);
    above = rows_of(here);
    weights = transposed_[l];
    outputs = layer.out;
  }
}

template <class T>
double ValueFit<T>::chunk(const RegressionRows<T>& rows, Index first, Index last, Index batch,
                          int worker, T* gradient) const {
  T* const x = scratch_ + worker * scratch_size_ + inputs_;
  double squared_error = 0;
  for (Index start = first; start < last; start += kPanelRows) {
    const Index count = std::min(kPanelRows, last - start), width = rows.x.cols;
    gather(rows, start, count, x);
    const MatrixView<const T> part{x, count, width, width, 1};
    T* const values = forward(part, worker);
    for (Index r = 0; r < count; ++r) {
      const T error = values[r] - rows.targets[rows.order[start + r]];
      squared_error += double(error) * double(error);
      values[r] = T(2) * error / T(batch);  // d loss / d value, loss = sum error^2 / batch
    }
    backward(part, values, worker, gradient, start == first);
  }
  return squared_error;
}

template <class T>
double ValueFit<T>::minibatch(const RegressionRows<T>& rows, Index first, Index batch) const {
  const Index chunks = chunks_of(batch);
  parallel_for(chunks, threads_, [&](Index c, int worker) {
    errors_[c] = chunk(rows, first + batch * c / chunks, first + batch * (c + 1) / chunks, batch,
                       worker, gradients_ + c * size_);
  });
  for (Index c = 1; c < chunks; ++c) {
    kernels_.add_scaled(T(1), gradients_ + c * size_, gradients_, size_);
    errors_[0] += errors_[c];
  }
  return errors_[0];
}

// False when the loss or the gradient's norm is beyond T: Adam's second moments would stay so.
template <class T>
bool ValueFit<T>::step(double loss, const AdamOptions& options, std::int64_t number) const {
  if (!std::isfinite(kernels_.squares(gradients_, size_)) || !std::isfinite(T(loss))) return false;
  const double first = 1 - std::pow(options.beta1, double(number));
  const double second = 1 - std::pow(options.beta2, double(number));
  const AdamStep<T> numbers{T(1 - options.beta1),  T(options.beta2),     T(1 - options.beta2),
                            T(options.lr / first), T(std::sqrt(second)), T(options.eps)};
  kernels_.adam(numbers, gradients_, exp_avg_, exp_avg_sq_, parameters_, size_);
  transpose_weights();
  return true;
}

template <class T>
FitFigures ValueFit<T>::run(const RegressionRows<T>& rows, const AdamOptions& options,
                            std::int64_t steps) {
  FitFigures figures{0, 0, steps};
  for (Index first = 0; first < rows.count; first += batch_rows_) {
    const Index batch = std::min(batch_rows_, rows.count - first);
    const double squared_error = minibatch(rows, first, batch);
    if (step(squared_error / double(batch), options, figures.steps + 1)) {
      ++figures.steps;
      figures.squared_error += squared_error;
    } else {
      figures.refused += batch;
    }
  }
  return figures;
}

template <class T>
void ValueFit<T>::write(What what, const std::vector<LayerTarget<T>>& targets) const {
  const T* const flat = what == What::parameters ? parameters_
                        : what == What::exp_avg  ? exp_avg_
                                                 : exp_avg_sq_;
  for (std::size_t l = 0; l + 1 < targets.size(); ++l) {
    const LayerTarget<T>& to = targets[l];
    const Index in = layers_[l].in, out = layers_[l].out, width = Slabs(out).width;
    const T *weight = flat + offsets_[l].weight, *bias = flat + offsets_[l].bias;
    for (Index o = 0; o < out; ++o) {
      if (to.bias != nullptr) to.bias[o * to.bias_stride] = bias[o];
      const T* const column = weight + o / width * width * in + o % width;
      T* const row = to.weight + o * to.weight_row_stride;
      for (Index i = 0; i < in; ++i) row[i * to.weight_col_stride] = column[i * width];
    }
  }
  const LayerTarget<T>& last = targets.back();
  for (Index i = 0; i < layers_.back().in; ++i) {
    last.weight[i * last.weight_col_stride] = flat[offsets_.back().weight + i];
  }
  if (last.bias != nullptr) last.bias[0] = flat[offsets_.back().bias];
}

template class ValueFit<float>;
template class ValueFit<double>;

}  // namespace trpo_fast
