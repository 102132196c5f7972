// One block at work on its rows: the network, its tangent and its backward pass, panel by panel.
#pragma once

#include "cuda/block.cuh"
#include "cuda/panels/dense_kernels.cuh"

namespace trpo_fast::cuda {

template <class T, int kRows>
class Panels : public BlockScalars<T> {
 public:
  using Element = T;
  using Tile = RowTile<T, kRows>;
  static constexpr int kPanel = kRows;

  const ProblemArgs<T>& args;
  const NetworkPlan& net;
  const int stride;                     // of panel buffers
  const T *weights, *backward_weights;  // where this block reads theta_old
  T *direction, *partial;               // v or a candidate; this block's partial sums

  // Carves shared memory; no thread has written any yet.
  __device__ explicit Panels(const ProblemArgs<T>& a)
      : BlockScalars<T>(a, kRows), args(a), net(a.network), stride(panel_stride(a.network.widest)) {
    partial = a.partials + Index(blockIdx.x) * net.packed;
    weights = a.weights;
    backward_weights = a.backward;
    direction = nullptr;
    if (!a.plan.weights_resident) return;
    // First, where no other use of the memory behind it reaches (tensor_panels.cuh).
    direction = inputs();
    this->end += int(net.packed);
    T* const resident = inputs() + 3 * kRows * stride;
    weights = resident;
    partial = resident + net.packed;
    backward_weights = resident + 2 * net.packed;
  }

  // From the start of shared memory each time: so the compiler sees what memory it is.
  __device__ T* inputs() const { return reinterpret_cast<T*>(dynamic_shared()) + this->end; }
  __device__ T* buffer(int which) const { return inputs() + (1 + which % 2) * kRows * stride; }
  __device__ T* cache_row(const BlockRows<T>& rows, Index row) const {
    const bool spare = rows.set != &args.fisher_rows && !args.fisher_is_all;
    const Index at =
        spare ? args.fisher_rows.rows + Index(blockIdx.x) * kRows + (row - rows.begin) % kRows
              : row;
    return args.cache + at * net.cache_width;
  }
  // The panel's outputs, tangents or deltas at the outputs.
  __device__ T* outputs() const { return buffer(net.count - 1); }

  // z_l = [a_{l-1}, 1] W_l, a_l = phi(z_l); leaves the outputs in `outputs()`. W: packed. keep:
  // writes the hidden layers' values and slopes to the cache.
  __device__ __noinline__ void forward(const BlockRows<T>& rows, Index first, const T* W,
                                       bool keep) {
    const int count = panel_rows(rows, first);
    for (int l = 0; l < net.count; ++l) {
      const LayerPlan& layer = net.layers[l];
      T* const to = buffer(l);
      __syncthreads();
      for (int c = 0; c < layer.out_padded; c += kTileColumns) {
        const int columns = layer.out_padded - c;
        Tile tile;
        tile.clear();
        if (l == 0) {
          add_inputs(tile, rows, first, W + layer.weight + c, columns);
        } else {
          tile.add(buffer(l - 1), stride, W + layer.weight + c, layer.out_padded, layer.in_rows,
                   columns);
        }
        tile.each(columns, [&](int row, int column, const Vec4<T>& z) {
          store4(to + row * stride + c + column, z);
        });
      }
      if (l + 1 < net.count) activate_panel(layer, rows, first, count, to, keep);
    }
    __syncthreads();
  }

  // zdot_l = [a_{l-1}, 1] V_l + adot_{l-1} W_l, adot_l = phi'(z_l) zdot_l; leaves zdot of the
  // outputs in `outputs()`. V: packed.
  __device__ __noinline__ void tangent(const BlockRows<T>& rows, Index first, const T* V) {
    const int count = panel_rows(rows, first);
    for (int l = 0; l < net.count; ++l) {
      const LayerPlan& layer = net.layers[l];
      if (l > 0) load_values(l - 1, rows, first, count);
      for (int c = 0; c < layer.out_padded; c += kTileColumns) {
        const int columns = layer.out_padded - c;
        Tile tile;
        tile.clear();
        if (l == 0) {
          add_inputs(tile, rows, first, V + layer.weight + c, columns);
        } else {
          tile.add(inputs(), stride, V + layer.weight + c, layer.out_padded, layer.in_rows,
                   columns);
          tile.add(buffer(l - 1), stride, weights + layer.weight + c, layer.out_padded,
                   layer.in_padded, columns);
        }
        times_slope(tile, l, rows, first, count, c, columns, buffer(l));
      }
    }
    __syncthreads();
  }

  // gW_l += [a_{l-1}, 1]' delta_l, delta_{l-1} = (delta_l W_l') phi'(z_{l-1}), from delta in
  // `outputs()`. first_panel: sets the sums.
  __device__ __noinline__ void backward(const BlockRows<T>& rows, Index first, bool first_panel) {
    const int count = panel_rows(rows, first);
    for (int l = net.count; l-- > 1;) {
      const LayerPlan& layer = net.layers[l];
      load_values(l - 1, rows, first, count);
      add_weight_gradient<T, kRows>(inputs(), stride, layer.in, separate_bias(layer), buffer(l),
                                    stride, layer.out_padded, first_panel, partial + layer.weight);
      for (int c = 0; c < layer.in_padded; c += kTileColumns) {
        const int columns = layer.in_padded - c;
        Tile tile;
        tile.clear();
        tile.add(buffer(l), stride, backward_weights + layer.backward + c, layer.in_padded,
                 layer.out_padded, columns);
        times_slope(tile, l - 1, rows, first, count, c, columns, buffer(l - 1));
      }
    }
    const LayerPlan& layer = net.layers[0];
    for (int column = 0; column < layer.in_rows; column += net.widest) {
      load_inputs(rows, first, count, column);
      const int left = layer.in - column;
      add_weight_gradient<T, kRows>(inputs(), stride, left < net.widest ? left : net.widest,
                                    column == 0 ? separate_bias(layer) : -1, buffer(0), stride,
                                    layer.out_padded, first_panel,
                                    partial + layer.weight + Index(column) * layer.out_padded);
    }
  }

  __device__ int panel_rows(const BlockRows<T>& rows, Index first) const {
    return rows.end - first < kRows ? int(rows.end - first) : kRows;
  }

 private:
  // Where the inputs' padding holds the 1, the weight's tiles cover the bias; -1.
  __device__ static int separate_bias(const LayerPlan& layer) {
    return layer.in % 4 == 0 ? layer.in : -1;
  }

  // z -> [phi(z), 1, padding], in place. One element at a time: unrolled, the switch over
  // activations would be most of the kernel's code.
  __device__ void activate_panel(const LayerPlan& layer, const BlockRows<T>& rows, Index first,
                                 int count, T* panel, bool keep) const {
    const int columns = int(round_up4(layer.out + 1));
    __syncthreads();
#pragma unroll 1
    for (int i = threadIdx.x; i < kRows * columns; i += kThreads) {
      const int row = i / columns, column = i % columns;
      T& element = panel[row * stride + column];
      ActivationValue<T> a{T(column == layer.out), T(0)};
      if (column < layer.out) a = activate(layer.activation, element, T(layer.parameter));
      element = a.value;
      if (!keep || row >= count) continue;
      T* const cache = cache_row(rows, first + row) + column;
      cache[layer.value] = a.value;
      if (layer.slope >= 0 && column < layer.out_padded) cache[layer.slope] = a.slope;
    }
  }

  // The tile, columns from `start` on, times phi'(z_l) of a hidden layer.
  __device__ void times_slope(Tile& tile, int l, const BlockRows<T>& rows, Index first, int count,
                              int start, int columns, T* to) const {
    const LayerPlan& layer = net.layers[l];
    const bool hidden = l + 1 < net.count;
    tile.each(columns, [&](int row, int column, const Vec4<T>& v) {
      column += start;
      Vec4<T> product = v;
      if (hidden && row < count) {
        const T* const cache = cache_row(rows, first + row) + column;
        product = slope_times(layer, cache + layer.value,
                              layer.slope < 0 ? nullptr : cache + layer.slope, v);
      }
      store4(to + row * stride + column, product);
    });
  }

  // Observations, a 1 and zeros: columns from `column` on, as many as a buffer has.
  __device__ void load_inputs(const BlockRows<T>& rows, Index first, int count, int column) {
    const LayerPlan& layer = net.layers[0];
    const int left = layer.in_rows - column, columns = left < net.widest ? left : net.widest;
    T* const to = inputs();
    __syncthreads();
    for (int i = threadIdx.x; i < kRows * columns; i += kThreads) {
      const int row = i / columns, c = column + i % columns;
      T value = 0;
      if (row < count)
        value = c < layer.in ? rows.set->obs[(first + row) * layer.in + c] : T(c == layer.in);
      to[row * stride + i % columns] = value;
    }
    __syncthreads();
  }

  __device__ void add_inputs(Tile& tile, const BlockRows<T>& rows, Index first, const T* right,
                             int columns) {
    const LayerPlan& layer = net.layers[0];
    const int count = panel_rows(rows, first);
    for (int column = 0; column < layer.in_rows; column += net.widest) {
      load_inputs(rows, first, count, column);
      const int left = layer.in_rows - column;
      tile.add(inputs(), stride, right + Index(column) * layer.out_padded, layer.out_padded,
               left < net.widest ? left : net.widest, columns);
    }
  }

  // [a_l, 1] of the panel from the cache.
  __device__ void load_values(int l, const BlockRows<T>& rows, Index first, int count) {
    const LayerPlan& layer = net.layers[l];
    const int across = int(round_up4(layer.out + 1)) / 4;
    T* const to = inputs();
    __syncthreads();
    for (int i = threadIdx.x; i < kRows * across; i += kThreads) {
      const int row = i / across, column = 4 * (i % across);
      const Vec4<T> zero{{0, 0, 0, 0}};
      store4(to + row * stride + column,
             row < count ? load4(cache_row(rows, first + row) + layer.value + column) : zero);
    }
    __syncthreads();
  }
};

}  // namespace trpo_fast::cuda
