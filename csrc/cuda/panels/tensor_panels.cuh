// F v by tensor cores within panels: a warp takes 16 or 32 rows through the tangent and back in
// registers. The sums of one product, in the lanes where the tensor cores leave them, are the
// operand of the next one where its depth is numbered as `fragment` says; the other operands,
// weights and vector, lie in shared memory as the words that a lane wants, next to each other. Only
// the weight gradients, whose depth is the rows, pass through shared memory: `staged` row tiles of
// inputs and deltas at a time.
#pragma once

#include "cuda/head_metric.cuh"
#include "cuda/panels/tensor_operands.cuh"

namespace trpo_fast::cuda {

template <Products kHow>
class TensorPanels : public BlockScalars<float>, TensorOperands<kHow> {
 public:
  using Element = float;
  static constexpr int kPanel = kTensorRows;

  const ProblemArgs<float>& args;
  const NetworkPlan& net;
  const int stride;  // of `outputs`

  __device__ explicit TensorPanels(const ProblemArgs<float>& a)
      : BlockScalars<float>(a, a.plan.panel_rows),
        args(a),
        net(a.network),
        stride(panel_stride(a.network.last().out_padded)) {
    if (a.plan.weights_resident) end += int(net.packed);  // the vector
    for (int l = 0; l < net.count; ++l) {
      const TensorSizes size = tensor_sizes(net.layers[l], kHow);
      all_.forward += size.forward;
      all_.backward += size.backward;
      all_.sums += size.sums;
      if (l == 0) first_ = size.forward;
    }
  }

  __device__ float* outputs() const { return region() + all_.sums; }
  __device__ int panel_rows(const BlockRows<float>& rows, Index first) const {
    return rows.end - first < kPanel ? int(rows.end - first) : kPanel;
  }

  // This block's partial product with v (packed) to where the grid reads it; returns this thread's
  // part of v'F v, without log std. pack_weights: the words of the weights are not there yet.
  __device__ double product(const float* v, bool pack_weights) {
    const BlockRows<float> rows(args.fisher_rows);
    __syncthreads();
    pack(v, pack_weights);
    for (Index i = threadIdx.x; i < all_.sums; i += kThreads) region()[i] = 0;
    __syncthreads();
    double square = 0;
    for (Index first = rows.begin; first < rows.end; first += kPanel) {
      square += panel(rows, first);
    }
    __syncthreads();
    store_partial();
    return square;
  }

 private:
  using Operands = TensorOperands<kHow>;
  using Operand = typename Operands::Operand;
  using Rows = typename Operands::Rows;
  using Operands::across, Operands::add_step, Operands::clear, Operands::each_element;
  using Operands::fragment, Operands::group, Operands::lane, Operands::multiply_staged;
  using Operands::kBf16, Operands::kParts, Operands::kRowTiles, Operands::kRun, Operands::kSteps;
  using Operands::kStepTiles, Operands::kStride, Operands::kTiles, Operands::kWordRows;
  using Operands::pack_operand, Operands::put_word, Operands::tile_of, Operands::warp;

  struct Panel {
    const BlockRows<float>& rows;
    Index first;
    int count, tiles;  // of rows; of row tiles that hold some
  };

  // From the start of shared memory each time: so the compiler sees what memory it is. Sums of the
  // weight gradients; outputs; words of v, of the weights, of the weights transposed; staged inputs
  // and deltas.
  __device__ float* region() const { return reinterpret_cast<float*>(dynamic_shared()) + end; }
  __device__ Word* words() const {
    return reinterpret_cast<Word*>(region() + all_.sums + kPanel * stride);
  }
  // A layer's at the same offset as its v's; the first layer has none.
  __device__ Word* weight_words() const { return words() + all_.forward - first_; }
  __device__ Word* backward_words() const { return weight_words() + all_.forward; }
  __device__ Word* staged_inputs() const { return backward_words() + all_.backward; }
  // Where low parts lie behind the high ones.
  __device__ int staged_part() const { return args.plan.staged * kWordRows * kStride; }
  __device__ Word* staged_deltas() const { return staged_inputs() + kParts * staged_part(); }

  __device__ void pack(const float* v, bool weights) const {
    Index forward = 0, backward = 0;
    for (int l = 0; l < net.count; ++l) {
      const LayerPlan& layer = net.layers[l];
      const TensorSizes size = tensor_sizes(layer, kHow);
      const auto packed_in = [&](const float* from, int rows) {
        return [=, &layer](int k, int n) {
          const bool inside = k < rows && n < layer.out_padded;
          return inside ? from[layer.weight + Index(k) * layer.out_padded + n] : 0.0f;
        };
      };
      pack_operand(words() + forward, size.steps, size.pairs, packed_in(v, layer.in_rows));
      if (weights && l > 0) {
        pack_operand(weight_words() + forward, size.steps, size.pairs,
                     packed_in(args.weights, layer.in));
        const auto transposed = [&](int k, int n) {
          const bool inside = k < layer.out_padded && n < layer.in_padded;
          return inside ? args.backward[layer.backward + Index(k) * layer.in_padded + n] : 0.0f;
        };
        pack_operand(backward_words() + backward, size.back_steps, size.back_pairs, transposed);
      }
      forward += size.forward;
      backward += size.backward;
    }
  }

  // [a_{l-1}, 1], columns from 8 j on, of a row tile; 0 beyond.
  __device__ __forceinline__ void load_inputs(float (&to)[4], const Panel& at, int l, int tile,
                                              int j) const {
    if (l > 0) return load_cached(to, at, net.layers[l - 1].value, net.layers[l].in_rows, tile, j);
    const int in = net.layers[0].in;
    each_element(tile, [&](int e, int row, int column) {
      column += 8 * j;
      const float one = column == in ? 1.0f : 0.0f;
      const float* const obs = at.rows.set->obs + (at.first + row) * in;
      to[e] = row < at.count ? (column < in ? obs[column] : one) : 0.0f;
    });
  }

  // The columns `start + 8 j` on of the cache, as far as `columns` go.
  __device__ __forceinline__ void load_cached(float (&to)[4], const Panel& at, int start,
                                              int columns, int tile, int j) const {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int row = 16 * tile + group() + 8 * half, column = 8 * j + 2 * across();
      Vec2<float> found{{0, 0}};
      if (row < at.count && column < columns) {
        found = load2(args.cache + (at.first + row) * net.cache_width + start + column);
      }
      to[2 * half] = found.x[0];
      to[2 * half + 1] = found.x[1];
    }
  }

  // v *= phi'(z_{l-1}); values: a_{l-1} as load_inputs gives it.
  __device__ __forceinline__ void times_slope(float (&v)[4], const float (&values)[4],
                                              const Panel& at, int l, int tile, int j) const {
    const LayerPlan& below = net.layers[l - 1];
    float cached[4] = {values[0], values[1], values[2], values[3]};
    if (below.slope >= 0) load_cached(cached, at, below.slope, below.out_padded, tile, j);
#pragma unroll
    for (int e = 0; e < 4; ++e) v[e] *= slope_of(below.activation, cached[e]);
  }

  // One panel: tangent, head metric, backward; returns this thread's part of v'F v.
  __device__ double panel(const BlockRows<float>& rows, Index first) {
    const int count = panel_rows(rows, first);
    const Panel at{rows, first, count, (count + 15) / 16};
    Rows sums;
    tangent(at, sums);
    put_outputs(sums);
    __syncthreads();
    const double square = metric_rows(*this, rows, first);
    __syncthreads();
    get_outputs(sums);
    backward(at, sums);
    return square;
  }

  // zdot_l = [a_{l-1}, 1] V_l + adot_{l-1} W_l, adot_l = phi'(z_l) zdot_l; zdot of the outputs.
  __device__ __forceinline__ void tangent(const Panel& at, Rows& sums) const {
    Rows below;
    clear(below);
    clear(sums);
    if (tile_of(0) >= at.tiles) return;
    Index start = 0;
    for (int l = 0; l < net.count; ++l) {
      const TensorSizes size = tensor_sizes(net.layers[l], kHow);
      below = sums;
      clear(sums);
      int step = 0;
      if (l > 0) {
#pragma unroll
        for (int s = 0; s < kSteps; ++s) {
          if (s >= size.steps) break;
          tangent_step(at, l, s, size, start, below, sums);
        }
        step = size.steps < kSteps ? size.steps : kSteps;
      }
      for (; step < size.steps; ++step) {
        float values[kRowTiles][kStepTiles][4];
        add_inputs(at, l, step, size, start, values, sums);
      }
      start += size.forward;
    }
  }

  // sums += [a_{l-1}, 1] V_l, one step of depth; values: those inputs.
  __device__ __forceinline__ void add_inputs(const Panel& at, int l, int step,
                                             const TensorSizes& size, Index start,
                                             float (&values)[kRowTiles][kStepTiles][4],
                                             Rows& sums) const {
    Operand left[kRowTiles];
#pragma unroll
    for (int i = 0; i < kRowTiles; ++i) {
#pragma unroll
      for (int j = 0; j < kStepTiles; ++j) {
        load_inputs(values[i][j], at, l, tile_of(i), kStepTiles * step + j);
      }
      left[i] = fragment(values[i][0], values[i][kStepTiles - 1]);
    }
    const int low = size.steps * size.pairs * kPairWords;
    add_step(sums, left, words() + start + step * size.pairs * kPairWords, low, size.pairs);
  }

  // The same, and sums += (phi'(z_{l-1}) below) W_l.
  __device__ __forceinline__ void tangent_step(const Panel& at, int l, int step,
                                               const TensorSizes& size, Index start, Rows& below,
                                               Rows& sums) const {
    float values[kRowTiles][kStepTiles][4];
    add_inputs(at, l, step, size, start, values, sums);
    Operand left[kRowTiles];
#pragma unroll
    for (int i = 0; i < kRowTiles; ++i) {
#pragma unroll
      for (int j = 0; j < kStepTiles; ++j) {
        const int tile = kStepTiles * step + j;
        times_slope(below.x[i][tile], values[i][j], at, l, tile_of(i), tile);
      }
      left[i] =
          fragment(below.x[i][kStepTiles * step], below.x[i][kStepTiles * step + kStepTiles - 1]);
    }
    const int low = size.steps * size.pairs * kPairWords;
    add_step(sums, left, weight_words() + start + step * size.pairs * kPairWords, low, size.pairs);
  }

  __device__ __forceinline__ void put_outputs(const Rows& sums) const {
#pragma unroll
    for (int i = 0; i < kRowTiles; ++i) {
#pragma unroll
      for (int j = 0; j < kTiles; ++j) {
        if (8 * j >= net.last().out_padded) break;
        each_element(tile_of(i), [&](int e, int row, int column) {
          column += 8 * j;
          if (column < net.last().out_padded) outputs()[row * stride + column] = sums.x[i][j][e];
        });
      }
    }
  }
  __device__ __forceinline__ void get_outputs(Rows& sums) const {
#pragma unroll
    for (int i = 0; i < kRowTiles; ++i) {
#pragma unroll
      for (int j = 0; j < kTiles; ++j) {
        each_element(tile_of(i), [&](int e, int row, int column) {
          column += 8 * j;
          const bool inside = column < net.last().out_padded;
          sums.x[i][j][e] = inside ? outputs()[row * stride + column] : 0.0f;
        });
      }
    }
  }

  // gW_l += [a_{l-1}, 1]' delta_l, delta_{l-1} = (delta_l W_l') phi'(z_{l-1}).
  __device__ __forceinline__ void backward(const Panel& at, Rows& delta) const {
    Index sums_at = all_.sums, start = all_.backward;
    Rows below;
    for (int l = net.count; l-- > 0;) {
      const TensorSizes size = tensor_sizes(net.layers[l], kHow);
      sums_at -= size.sums;
      start -= size.backward;
      clear(below);
      if (l > 0 && tile_of(0) < at.tiles) {
        const int low = size.back_steps * size.back_pairs * kPairWords;
#pragma unroll
        for (int s = 0; s < kSteps; ++s) {
          if (s >= size.back_steps) break;
          Operand left[kRowTiles];
#pragma unroll
          for (int i = 0; i < kRowTiles; ++i) {
            left[i] =
                fragment(delta.x[i][kStepTiles * s], delta.x[i][kStepTiles * s + kStepTiles - 1]);
          }
          const Word* const right = backward_words() + start + s * size.back_pairs * kPairWords;
          add_step(below, left, right, low, size.back_pairs);
        }
      }
      weight_gradient(at, l, size, delta, below, sums_at);
      delta = below;
    }
  }

  // gW_l, and below *= phi'(z_{l-1}), so that inputs are read once. As many columns of inputs at a
  // time as shared memory has.
  __device__ __forceinline__ void weight_gradient(const Panel& at, int l, const TensorSizes& size,
                                                  const Rows& delta, Rows& below,
                                                  Index sums_at) const {
    constexpr int kAcross = kStride / 8;
    for (int column = 0; column < size.in_tiles; column += kAcross) {
      const int left = size.in_tiles - column, columns = left < kAcross ? left : kAcross;
      for (int first = 0; first < at.tiles; first += args.plan.staged) {
        const int rest = at.tiles - first;
        const int staged = rest < args.plan.staged ? rest : args.plan.staged;
        __syncthreads();
        stage(at, l, size, delta, below, column, columns, first, staged);
        __syncthreads();
        add_gradient(size, column, columns, staged, sums_at);
      }
    }
  }

  // Row tiles first .. first + staged - 1 to shared memory: of [a_{l-1}, 1] `columns` tiles from
  // `column` on, and of delta_l all.
  __device__ __forceinline__ void stage(const Panel& at, int l, const TensorSizes& size,
                                        const Rows& delta, Rows& below, int column, int columns,
                                        int first, int staged) const {
#pragma unroll
    for (int i = 0; i < kRowTiles; ++i) {
      const int tile = tile_of(i), place = tile - first;
      if (place < 0 || place >= staged) continue;
#pragma unroll
      for (int j = 0; j < kTiles; ++j) {
        if (j >= 2 * size.pairs) break;
        put_rows(staged_deltas(), place, j, delta.x[i][j]);
      }
#pragma unroll
      for (int j = 0; j <= kTiles; ++j) {
        if (j >= columns) break;
        float values[4];
        load_inputs(values, at, l, tile, column + j);
        put_rows(staged_inputs(), place, j, values);
        if (l > 0 && j < kTiles) times_slope(below.x[i][j], values, at, l, tile, j);
      }
    }
  }

  // A quad of a row tile to shared memory, [word row][column]: bf16 pairs rows g and g + 8.
  __device__ __forceinline__ void put_rows(Word* to, int place, int j, const float (&v)[4]) const {
    Word* const at = to + (place * kWordRows + group()) * kStride + 8 * j + 2 * across();
#pragma unroll
    for (int e = 0; e < 2; ++e) {
      if constexpr (kBf16) {
        put_word(at + e, staged_part(), v[e], v[2 + e]);
      } else {
        put_word(at + e, 0, v[e], 0);
        put_word(at + 8 * kStride + e, 0, v[2 + e], 0);
      }
    }
  }

  // gW_l' [out, in] += delta_l' [a_{l-1}, 1] of the staged rows: runs of tiles are dealt to the
  // warps.
  __device__ __forceinline__ void add_gradient(const TensorSizes& size, int column, int columns,
                                               int staged, Index sums_at) const {
    const int wanted = size.pairs < kWarps ? kWarps / size.pairs : 1;
    const int even = (columns + wanted - 1) / wanted, run = even < kRun ? even : kRun;
    const int items = size.pairs * ((columns + run - 1) / run);
    for (int item = warp(); item < items; item += kWarps) {
      const int row = item % size.pairs, start = item / size.pairs * run;
      const int left = columns - start, count = left < run ? left : run;
      float* const to =
          region() + sums_at + Index(row * size.in_tiles + column + start) * kTileSums + 4 * lane();
      float sums[kRun][4] = {};
#pragma unroll
      for (int j = 0; j < kRun; ++j) {
        if (j >= count) break;
        const Vec4<float> before = load4(to + j * kTileSums);
#pragma unroll
        for (int e = 0; e < 4; ++e) sums[j][e] = before.x[e];
      }
      multiply_staged(sums, staged_deltas() + 16 * row, staged_inputs() + 8 * start, staged_part(),
                      count, staged * kWordRows);
#pragma unroll
      for (int j = 0; j < kRun; ++j) {
        if (j >= count) break;
        store4(to + j * kTileSums, Vec4<float>{{sums[j][0], sums[j][1], sums[j][2], sums[j][3]}});
      }
    }
  }

  // The sums, [out, in] tile by tile, to this block's packed partial product.
  __device__ void store_partial() const {
    float* const partial = args.partials + Index(blockIdx.x) * net.packed;
    Index start = 0;
    for (int l = 0; l < net.count; ++l) {
      const LayerPlan& layer = net.layers[l];
      const TensorSizes size = tensor_sizes(layer, kHow);
      for (int i = threadIdx.x; i < int(size.sums); i += kThreads) {
        const int tile = i / kTileSums, of = i / 4 % 32;
        const int out = 16 * (tile / size.in_tiles) + of / 4 + 8 * (i / 2 % 2);
        const int in = 8 * (tile % size.in_tiles) + 2 * (of % 4) + i % 2;
        if (out >= layer.out || in > layer.in) continue;
        partial[layer.weight + Index(in) * layer.out_padded + out] = region()[start + i];
      }
      start += size.sums;
    }
  }

  TensorSizes all_{};  // of all layers together
  Index first_ = 0;    // words of the first layer's v
};

template <Products kHow>
__device__ __noinline__ double tensor_product(const ProblemArgs<float>& a, const float* v,
                                              bool pack_weights) {
  return TensorPanels<kHow>(a).product(v, pack_weights);
}

}  // namespace trpo_fast::cuda
