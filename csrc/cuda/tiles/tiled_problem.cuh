// The parts of an update for wide networks, as the whole grid does them: one layer of a chunk of
// rows after the other, every product cut into tiles, a barrier of the grid between layers. The
// same interface as Problem's, so that conjugate gradients and the trust region are the same code.
#pragma once

#include "cuda/candidate.cuh"
#include "cuda/grid.cuh"
#include "cuda/head_metric.cuh"
#include "cuda/surrogate_gradient.cuh"
#include "cuda/tiles/tiles.cuh"

namespace trpo_fast::cuda {

// A block at work on a panel of rows of the network's outputs, which lie in global memory.
template <class T>
class TilePanels : public BlockScalars<T> {
 public:
  using Element = T;
  static constexpr int kPanel = kPanelRows;

  const ProblemArgs<T>& args;
  const NetworkPlan& net;
  const int stride;  // of a chunk's buffers

  __device__ explicit TilePanels(const ProblemArgs<T>& a)
      : BlockScalars<T>(a, kPanel), args(a), net(a.network), stride(a.network.widest) {}

  __device__ T* outputs() const { return outputs_; }
  __device__ int panel_rows(const BlockRows<T>& rows, Index first) const {
    return rows.end - first < kPanel ? int(rows.end - first) : kPanel;
  }

  // body(first row) for this block's panels of a chunk; `outputs()` is that panel's.
  template <class Body>
  __device__ void each(const BlockRows<T>& chunk, Body&& body) {
    for (Index first = chunk.begin + Index(blockIdx.x) * kPanel; first < chunk.end;
         first += Index(gridDim.x) * kPanel) {
      outputs_ = args.chunk[(net.count - 1) % 2] + (first - chunk.begin) * stride;
      body(first);
      __syncthreads();
    }
  }

 private:
  T* outputs_ = nullptr;
};

template <class T>
class TiledProblem {
 public:
  using Element = T;
  static constexpr bool kPreconditions = true;

  const ProblemArgs<T>& args;
  TilePanels<T> panels;
  Vectors<T> vectors;
  GridSums sums;

  __device__ explicit TiledProblem(const ProblemArgs<T>& a)
      : args(a),
        panels(a),
        vectors(a, nullptr, panels.warp_parts),
        sums{a.sums, panels.warp_sums, 0},
        net_(a.network) {}

  // Packs theta_old. Ends with a barrier of the grid.
  __device__ __noinline__ void prepare() {
    pack_weights(args, vectors);
    panels.read_log_std(args);
    grid_sync();
  }

  // The caches of the Fisher rows, where the gradient's pass does not fill them.
  __device__ __noinline__ void prepare_fisher() {
    each_chunk(args.fisher_rows, [&](const BlockRows<T>& chunk) {
      forward_chunk(chunk, args.weights, true);
      panels.each(chunk, [&](Index first) {
        const int r = threadIdx.x;
        if (r >= panels.panel_rows(chunk, first)) return;
        cache_metric(panels, chunk, first + r, panels.outputs() + r * panels.stride);
      });
    });
  }

  // Loss and g = -dloss, packed in args.g; returns the loss and |g|^2 by reference.
  __device__ __noinline__ void gradient(double& loss, double& square) {
    double first[1] = {0};
    for (int i = threadIdx.x; i < args.scales; i += kThreads) panels.log_std_sums[i] = 0;
    each_chunk(args.rows, [&](const BlockRows<T>& chunk) {
      forward_chunk(chunk, args.weights, true);
      panels.each(chunk, [&](Index row) {
        first[0] += surrogate_rows(panels, chunk, row);
        __syncthreads();
        log_std_rows(panels, chunk, row);
        __syncthreads();
        delta_rows(panels, chunk, row);
      });
      grid_sync();
      backward_chunk(chunk, Products::exact);
    });
    for (int i = threadIdx.x; i < args.scales; i += kThreads) {
      args.log_std_sums[Index(blockIdx.x) * args.scales + i] = panels.log_std_sums[i];
    }
    sums(first);
    loss = first[0];
    square = reduce_gradient(*this, [&](Index action, T) { return log_std_gradient(action); });
  }

  __device__ const T* shared_copy(const T* packed) const { return packed; }

  // The splits' partial sums of F v; returns v'(F + damping I)v.
  __device__ __noinline__ double product(const T* v, double damping) {
    double square[1] = {0};
    each_chunk(args.fisher_rows, [&](const BlockRows<T>& chunk) {
      tangent_chunk(chunk, v);
      panels.each(chunk, [&](Index first) { square[0] += metric_rows(panels, chunk, first); });
      grid_sync();
      backward_chunk(chunk, args.products);
    });
    square[0] += vectors.rest_square(v, damping);
    sums(square);
    return square[0];
  }

  // Mean loss and mean KL at W, a packed vector that the grid has finished writing.
  __device__ __noinline__ void evaluate(const T* W, double (&found)[2]) {
    panels.read_new_log_std(args, W);
    __syncthreads();
    found[0] = found[1] = 0;
    each_chunk(args.rows, [&](const BlockRows<T>& chunk) {
      forward_chunk(chunk, W, false);
      panels.each(chunk, [&](Index first) { candidate_rows(panels, chunk, first, found); });
    });
    // Before the sums' barrier: after it another thread may read the next candidate's scale.
    const double shared = shared_kl(panels);
    sums(found);
    found[1] += shared;
  }

  // The network's outputs [N, outputs] to args.result.
  __device__ void forward() {
    each_chunk(args.rows, [&](const BlockRows<T>& chunk) {
      forward_chunk(chunk, args.weights, false);
      panels.each(chunk, [&](Index first) { store_outputs(panels, chunk, first); });
    });
  }

  // z = M^-1 r, both of args; returns r'z.
  __device__ __noinline__ double precondition() {
    vectors.each([&](Index i) {
      const Index place = vectors.place(i);
      args.z[i] = place >= 0 ? args.preconditioner.diagonal[place] * args.r[i] : T(0);
    });
    rotate(Rotation::enter);
    rotate(Rotation::scale);
    rotate(Rotation::back);
    rotate(Rotation::leave);
    double rz[1] = {0};
    vectors.each([&](Index i) { rz[0] += double(args.r[i]) * double(args.z[i]); });
    sums(rz);
    return rz[0];
  }

  __device__ void report(Figure figure, double value) const { report_figure(args, figure, value); }

 private:
  // Ends every chunk with a barrier of the grid: the next one overwrites its buffers.
  template <class Body>
  __device__ void each_chunk(const RowSet<T>& set, Body&& body) {
    for (Index first = 0; first < set.rows; first += args.plan.chunk_rows) {
      const Index left = set.rows - first, count = args.plan.chunk_rows;
      body(BlockRows<T>(set, first, first + (left < count ? left : count)));
      grid_sync();
    }
  }

  __device__ T* buffer(int l) const { return args.chunk[l % 2]; }

  // Where the cache of a chunk's first row lies; rows that are not the Fisher's share one chunk's.
  __device__ T* cache(const BlockRows<T>& chunk) const {
    Index at = chunk.begin;
    if (args.forward_only) at = 0;
    if (chunk.set != &args.fisher_rows && !args.fisher_is_all) at = args.fisher_rows.rows;
    return args.cache + at * net_.cache_width;
  }

  // [a_{l-1}, 1] of a chunk.
  __device__ const T* inputs_of(const BlockRows<T>& chunk, int l) const {
    return cache(chunk) + (l == 0 ? net_.inputs : net_.layers[l - 1].value);
  }

  // C [chunk, columns] of layer l's buffer, as yet the sum of no terms.
  __device__ TileProduct<T> rows_of(const BlockRows<T>& chunk, int l, Index columns,
                                    Finish finish) const {
    TileProduct<T> p{};
    p.rows = chunk.end - chunk.begin;
    p.columns = columns;
    p.to = buffer(l);
    p.to_stride = panels.stride;
    p.finish = finish;
    const LayerPlan& layer = net_.layers[l];
    p.layer = &layer;
    p.cache_stride = net_.cache_width;
    if (finish == Finish::slope) {
      p.values = cache(chunk) + layer.value;
      if (layer.slope >= 0) p.slopes_read = cache(chunk) + layer.slope;
    }
    return p;
  }

  // z_l = [a_{l-1}, 1] W_l, a_l = phi(z_l); leaves the outputs in the last layer's buffer. keep:
  // hidden values and slopes go to the cache.
  __device__ __noinline__ void forward_chunk(const BlockRows<T>& chunk, const T* W, bool keep) {
    load_inputs(chunk);
    grid_sync();
    for (int l = 0; l < net_.count; ++l) {
      const LayerPlan& layer = net_.layers[l];
      const bool hidden = l + 1 < net_.count;
      TileProduct<T> p =
          rows_of(chunk, l, layer.out_padded, hidden ? Finish::activate : Finish::store);
      if (hidden && keep) {
        p.to = cache(chunk) + layer.value;
        p.to_stride = net_.cache_width;
        if (layer.slope >= 0) p.slopes = cache(chunk) + layer.slope;
      }
      const bool cached = l == 0 || keep;
      p.terms[p.term_count++] = {cached ? inputs_of(chunk, l) : buffer(l - 1),
                                 cached ? Index(net_.cache_width) : Index(panels.stride),
                                 false,
                                 W + layer.weight,
                                 layer.out_padded,
                                 layer.in_rows};
      run_phase(p, Products::exact);
    }
  }

  // zdot_l = [a_{l-1}, 1] V_l + adot_{l-1} W_l, adot_l = phi'(z_l) zdot_l; leaves zdot of the
  // outputs in the last layer's buffer. V: packed.
  __device__ __noinline__ void tangent_chunk(const BlockRows<T>& chunk, const T* V) {
    for (int l = 0; l < net_.count; ++l) {
      const LayerPlan& layer = net_.layers[l];
      TileProduct<T> p =
          rows_of(chunk, l, layer.out_padded, l + 1 < net_.count ? Finish::slope : Finish::store);
      p.terms[p.term_count++] = {inputs_of(chunk, l), net_.cache_width, false,
                                 V + layer.weight,    layer.out_padded, layer.in_rows};
      if (l > 0) {
        p.terms[p.term_count++] = {
            buffer(l - 1),    panels.stride,  false, args.weights + layer.weight,
            layer.out_padded, layer.in_padded};
      }
      run_phase(p, args.products);
    }
  }

  // gW_l += [a_{l-1}, 1]' delta_l, delta_{l-1} = (delta_l W_l') phi'(z_{l-1}), from delta in the
  // last layer's buffer. The first chunk sets the partial sums.
  __device__ __noinline__ void backward_chunk(const BlockRows<T>& chunk, Products products) {
    for (int l = net_.count; l-- > 0;) {
      const LayerPlan& layer = net_.layers[l];
      Index taken = 0;
      if (l > 0) {
        TileProduct<T> p = rows_of(chunk, l - 1, layer.in_padded, Finish::slope);
        p.terms[p.term_count++] = {buffer(l),       panels.stride,
                                   false,           args.backward + layer.backward,
                                   layer.in_padded, layer.out_padded};
        run_tiles(p, products, taken, panels.end);
      }
      for (int split = 0; split < args.plan.partials; ++split) {
        add_weight_gradient(chunk, l, split, products, taken);
      }
      if (layer.in % 4 == 0) add_bias_gradient(chunk, l);
      grid_sync();
    }
  }

  // A split's rows of a chunk.
  __device__ Index split_start(const BlockRows<T>& chunk, int split) const {
    return (chunk.end - chunk.begin) * split / args.plan.partials;
  }

  __device__ void add_weight_gradient(const BlockRows<T>& chunk, int l, int split,
                                      Products products, Index& taken) const {
    const LayerPlan& layer = net_.layers[l];
    const Index first = split_start(chunk, split), end = split_start(chunk, split + 1);
    TileProduct<T> p{};
    // Where the inputs' padding holds the 1, the tiles cover the bias.
    p.rows = layer.in % 4 == 0 ? layer.in : layer.in_rows;
    p.columns = layer.out_padded;
    p.to = args.partials + split * net_.packed + layer.weight;
    p.to_stride = layer.out_padded;
    p.finish = Finish::add;
    p.first = chunk.begin == 0;
    // A chunk can have fewer rows than there are splits.
    if (first < end) {
      p.terms[p.term_count++] = {inputs_of(chunk, l) + first * net_.cache_width,
                                 net_.cache_width,
                                 true,
                                 buffer(l) + first * panels.stride,
                                 panels.stride,
                                 end - first};
    }
    run_tiles(p, products, taken, panels.end);
  }

  // The bias where it is a row of tiles of its own: column sums of delta, 32 columns a block and
  // split; a warp adds every eighth row, and the warps' sums are added in order.
  __device__ void add_bias_gradient(const BlockRows<T>& chunk, int l) const {
    const LayerPlan& layer = net_.layers[l];
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, splits = args.plan.partials;
    const int shares = (layer.out_padded + 31) / 32 * splits;
    // From the last block on: the first ones have the tiles that do not divide evenly.
    for (int share = gridDim.x - 1 - blockIdx.x; share < shares; share += gridDim.x) {
      const int split = share % splits, column = share / splits * 32 + lane;
      T sum = 0;
      if (column < layer.out) {
        const T* const from = buffer(l) + column;
        const Index end = split_start(chunk, split + 1);
#pragma unroll 8
        for (Index r = split_start(chunk, split) + warp; r < end; r += kWarps) {
          sum += from[r * panels.stride];
        }
      }
      panels.warp_parts[warp * 32 + lane] = sum;
      __syncthreads();
      if (warp == 0 && column < layer.out) {
        for (int w = 1; w < kWarps; ++w) sum += panels.warp_parts[w * 32 + lane];
        T& total = args.partials[split * net_.packed + layer.weight +
                                 Index(layer.in) * layer.out_padded + column];
        total = chunk.begin == 0 ? sum : total + sum;
      }
      __syncthreads();
    }
  }

  __device__ void run_phase(const TileProduct<T>& p, Products products) const {
    Index taken = 0;
    run_tiles(p, products, taken, panels.end);
    grid_sync();
  }

  enum class Rotation { enter, scale, back, leave };

  // One step of M^-1 r in every layer that has it.
  __device__ void rotate(Rotation step) const {
    const Preconditioner<T>& m = args.preconditioner;
    Index taken = 0;
    for (int l = 0; l < net_.count; ++l) {
      const bool inner = step == Rotation::scale || step == Rotation::back;
      if (m.at[l] < 0 || (inner && !m.eigen[l])) continue;
      run_tiles(rotation(l, step), Products::exact, taken, panels.end);
    }
    grid_sync();
  }

  __device__ TileProduct<T> rotation(int l, Rotation step) const {
    const LayerPlan& layer = net_.layers[l];
    const Index rows = layer.in_rows, columns = layer.out_padded;
    const T* const A = args.preconditioner.matrices + args.preconditioner.at[l];
    const T* const G_transposed = A + rows * rows;
    const T* const G = G_transposed + columns * columns;
    T* const first = args.rotated[0] + layer.weight;
    T* const second = args.rotated[1] + layer.weight;
    TileProduct<T> p{};
    p.rows = rows;
    p.columns = columns;
    p.to_stride = columns;
    p.term_count = 1;
    switch (step) {
      case Rotation::enter:  // U_A' R', or (A + cI)^-1 R', which is symmetric
        p.terms[0] = {A, rows, true, args.r + layer.weight, columns, rows};
        p.to = first;
        break;
      case Rotation::scale:  // (. U_G) / (l_A l_G' + damping)
        p.terms[0] = {first, columns, false, G, columns, columns};
        p.to = second;
        p.finish = Finish::multiply;
        p.factor = G + columns * columns;
        p.factor_stride = columns;
        break;
      case Rotation::back:  // U_A .
        p.terms[0] = {A, rows, false, second, columns, rows};
        p.to = first;
        break;
      case Rotation::leave:  // . U_G' or . (G + cI)^-1
        p.terms[0] = {first, columns, false, G_transposed, columns, columns};
        p.to = args.z + layer.weight;
        break;
    }
    return p;
  }

  // [observation, 1, padding] of every row to the cache.
  __device__ void load_inputs(const BlockRows<T>& chunk) const {
    const LayerPlan& layer = net_.layers[0];
    T* const to = cache(chunk) + net_.inputs;
    const Index elements = (chunk.end - chunk.begin) * layer.in_rows;
    for (Index i = Index(blockIdx.x) * kThreads + threadIdx.x; i < elements;
         i += Index(gridDim.x) * kThreads) {
      const Index row = i / layer.in_rows, c = i % layer.in_rows;
      to[row * net_.cache_width + c] =
          c < layer.in ? chunk.set->obs[(chunk.begin + row) * layer.in + c] : T(c == layer.in);
    }
  }

  // The blocks' sums for one action, in order.
  __device__ T log_std_gradient(Index action) const {
    double sum = 0;
    for (unsigned b = 0; b < gridDim.x; ++b) sum += args.log_std_sums[b * args.scales + action];
    return T(sum);
  }

  const NetworkPlan& net_;
};

}  // namespace trpo_fast::cuda
