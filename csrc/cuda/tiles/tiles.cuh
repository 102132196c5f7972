// Products of matrices in global memory, a tile of 128 x 128 sums a block: operands pass through
// shared memory in stages of a small depth, the next one loaded while the present one is
// multiplied.
#pragma once

#include "cuda/block.cuh"
#include "cuda/tensor_cores.cuh"

namespace trpo_fast::cuda {

// One left times right. Every column count and stride is a multiple of four, and no depth is 0.
template <class T>
struct Term {
  const T* left;  // [rows, depth], or [depth, rows] where left_by_depth
  Index left_stride;
  bool left_by_depth;
  const T* right;  // [depth, columns]
  Index right_stride;
  Index depth;
};

enum class Finish : int {
  store,     // C = sums
  add,       // C += sums, or C = sums where `first`
  multiply,  // C = sums * factor
  slope,     // C = sums * phi'(z)
  activate,  // C = [phi(sums), 1], and phi' to `slopes`
};

// C [rows, columns] from the sum of one or two products.
template <class T>
struct TileProduct {
  Term<T> terms[2];
  int term_count;
  Index rows, columns;
  T* to;
  Index to_stride;
  Finish finish;
  bool first;
  const T* factor;  // multiply
  Index factor_stride;
  const LayerPlan* layer;  // slope and activate
  const T *values, *slopes_read;
  T* slopes;  // activate: null where none are kept
  Index cache_stride;

  __device__ Index tiles_across() const { return (columns + kTile - 1) / kTile; }
  __device__ Index tiles() const { return (rows + kTile - 1) / kTile * tiles_across(); }
};

// 8 x 8 sums a thread: 16 x 16 threads, each with four neighbours of each half, both ways.
template <class T>
struct ScalarTile {
  static constexpr int kDepth = tile_depth(sizeof(T));
  T sums[8][8] = {};

  __device__ __forceinline__ static int at(int i, int thread) {
    return 4 * thread + i % 4 + 64 * (i / 4);
  }

  __device__ __forceinline__ static void put(T* stage, int depth, int column, const Vec4<T>& v) {
    store4(stage + depth * kTileStride + column, v);
  }
  __device__ __forceinline__ static void put_transposed(T* stage, int depth, int column,
                                                        const Vec4<T>& v) {
#pragma unroll
    for (int j = 0; j < 4; ++j) stage[(depth + j) * kTileStride + column] = v.x[j];
  }
  // Operands `kEach` quads a thread, quad q at depth first + q.
  template <int kEach>
  __device__ __forceinline__ static void put_by_depth(T* stage, int first, int column,
                                                      const Vec4<T> (&v)[kEach]) {
#pragma unroll
    for (int q = 0; q < kEach; ++q) put(stage, first + q, column, v[q]);
  }

  __device__ __forceinline__ void multiply(const T* left, const T* right) {
    const int y = threadIdx.x / 16, x = threadIdx.x % 16;
    // Unrolled further, the operands of several steps at once do not fit the registers.
#pragma unroll 2
    for (int k = 0; k < kDepth; ++k) {
      Vec4<T> a[2], b[2];
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        a[half] = load4(left + k * kTileStride + 4 * y + 64 * half);
        b[half] = load4(right + k * kTileStride + 4 * x + 64 * half);
      }
#pragma unroll
      for (int i = 0; i < 8; ++i) {
#pragma unroll
        for (int j = 0; j < 8; ++j) sums[i][j] += a[i / 4].x[i % 4] * b[j / 4].x[j % 4];
      }
    }
  }

  // finish(row, column, four neighbours) for every part of the tile.
  template <class Body>
  __device__ __forceinline__ void each(Body&& finish) const {
    const int y = threadIdx.x / 16, x = threadIdx.x % 16;
#pragma unroll
    for (int i = 0; i < 8; ++i) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        Vec4<T> v;
#pragma unroll
        for (int j = 0; j < 4; ++j) v.x[j] = sums[i][4 * half + j];
        finish(at(i, y), 4 * x + 64 * half, v);
      }
    }
  }
};

// 64 x 32 sums a warp, as 4 x 4 fragments. Shared memory holds words instead of floats: one tf32,
// or two bfloat16 neighbours in depth; of bf16x3 the high parts and, in the second half of a
// stage, the low ones.
template <Products kHow>
struct TensorTile {
  static constexpr int kDepth = tile_depth(sizeof(float));
  static constexpr bool kBf16 = kHow != Products::tf32;
  static constexpr bool kSplit = kHow == Products::bf16x3;
  static constexpr int kWords = kBf16 ? kDepth / 2 : kDepth;
  static constexpr int kLow = kWords * kTileStride;  // where the low parts start
  float sums[4][4][4] = {};

  __device__ __forceinline__ static void put_pair(float* stage, int depth, int column, float even,
                                                  float odd) {
    Word* const to = reinterpret_cast<Word*>(stage) + depth / 2 * kTileStride + column;
    const Word high = bf16_pair(even, odd);
    *to = high;
    if (kSplit) to[kLow] = bf16_pair(even - low_of(high), odd - high_of(high));
  }
  __device__ __forceinline__ static void put_transposed(float* stage, int depth, int column,
                                                        const Vec4<float>& v) {
    if constexpr (kBf16) {
      put_pair(stage, depth, column, v.x[0], v.x[1]);
      put_pair(stage, depth + 2, column, v.x[2], v.x[3]);
    } else {
      Word* const to = reinterpret_cast<Word*>(stage) + depth * kTileStride + column;
#pragma unroll
      for (int j = 0; j < 4; ++j) to[j * kTileStride] = tf32_word(v.x[j]);
    }
  }
  __device__ __forceinline__ static void put_by_depth(float* stage, int first, int column,
                                                      const Vec4<float> (&v)[2]) {
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      if constexpr (kBf16) {
        put_pair(stage, first, column + j, v[0].x[j], v[1].x[j]);
      } else {
        Word* const to = reinterpret_cast<Word*>(stage) + first * kTileStride + column + j;
        to[0] = tf32_word(v[0].x[j]);
        to[kTileStride] = tf32_word(v[1].x[j]);
      }
    }
  }

  __device__ __forceinline__ void multiply(const float* left, const float* right) {
    const Word* const A = reinterpret_cast<const Word*>(left) + first_row() + group();
    const Word* const B = reinterpret_cast<const Word*>(right) + first_column() + group();
#pragma unroll
    for (int k = 0; k < kWords; k += kFragmentDepth) {
      if (kSplit) {
        add(A + kLow, B, k);
        add(A, B + kLow, k);
      }
      add(A, B, k);
    }
  }

  // As ScalarTile's; lanes exchange halves, so that each has four neighbours of one row.
  template <class Body>
  __device__ __forceinline__ void each(Body&& finish) const {
    const bool odd = threadIdx.x % 2 != 0;
    const int row = first_row() + group() + (odd ? 8 : 0);
    const int column = first_column() + int(threadIdx.x) % 4 / 2 * 4;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        const float (&s)[4] = sums[i][j];
        const float x = __shfl_xor_sync(0xffffffffu, odd ? s[0] : s[2], 1);
        const float y = __shfl_xor_sync(0xffffffffu, odd ? s[1] : s[3], 1);
        const Vec4<float> v =
            odd ? Vec4<float>{{x, y, s[2], s[3]}} : Vec4<float>{{s[0], s[1], x, y}};
        finish(row + 16 * i, column + 8 * j, v);
      }
    }
  }

 private:
  __device__ __forceinline__ static int first_row() { return int(threadIdx.x) / 32 / 4 * 64; }
  __device__ __forceinline__ static int first_column() { return int(threadIdx.x) / 32 % 4 * 32; }
  __device__ __forceinline__ static int group() { return int(threadIdx.x) % 32 / 4; }

  // sums += A B over the words k .. k + 7 of the depth
  __device__ __forceinline__ void add(const Word* A, const Word* B, int k) {
    const int t = int(threadIdx.x) % 4;
    const Word* const near_a = A + (k + t) * kTileStride;
    const Word* const near_b = B + (k + t) * kTileStride;
    FragmentB b[4];
#pragma unroll
    for (int j = 0; j < 4; ++j) b[j] = {{near_b[8 * j], near_b[4 * kTileStride + 8 * j]}};
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const Word* const top = near_a + 16 * i;
      const FragmentA a{{top[0], top[8], top[4 * kTileStride], top[4 * kTileStride + 8]}};
#pragma unroll
      for (int j = 0; j < 4; ++j) multiply_add<kBf16>(sums[i][j], a, b[j]);
    }
  }
};

// What one thread reads of an operand, stage by stage: quads of neighbours in the operand's rows.
template <class T>
struct Reader {
  static constexpr int kDepth = tile_depth(sizeof(T));
  static constexpr int kQuads = kTile * kDepth / 4 / kThreads;  // a thread's, of an operand
  const T* at;
  int step, quad_step;  // to the next stage, to the next quad
  int depth;            // left of the operand, from this thread's first quad on
  int quad_depth;
  bool inside;

  // [depth, columns], columns from `first` on; a warp reads rows.
  __device__ __forceinline__ void by_depth(const T* from, Index stride, Index first, Index end,
                                           Index whole) {
    const int k = kQuads * (int(threadIdx.x) / 32);
    const Index column = first + 4 * (int(threadIdx.x) % 32);
    at = from + k * stride + column;
    step = int(kDepth * stride);
    quad_step = int(stride);
    depth = int(whole) - k;
    quad_depth = 1;
    inside = column < end;
  }
  // [rows, depth], rows from `first` on. Two lanes a row: they read whole sectors of 32 bytes.
  __device__ __forceinline__ void by_rows(const T* from, Index stride, Index first, Index end,
                                          Index whole) {
    const int k = 4 * (int(threadIdx.x) % 2);
    const Index row = first + int(threadIdx.x) / 2;
    at = from + row * stride + k;
    step = kDepth;
    quad_step = 8;
    depth = int(whole) - k;
    quad_depth = 8;
    inside = row < end;
  }
  __device__ __forceinline__ void next(Vec4<T> (&to)[kQuads]) {
#pragma unroll
    for (int q = 0; q < kQuads; ++q) {
      const bool there = inside && q * quad_depth < depth;
      to[q] = there ? load4(at + q * quad_step) : Vec4<T>{{0, 0, 0, 0}};
    }
    at += step;
    depth -= kDepth;
  }
};

// The stages of a tile's products, one after the other: what this thread brings of each.
template <class T>
class Stages {
 public:
  static constexpr int kDepth = Reader<T>::kDepth, kQuads = Reader<T>::kQuads;

  __device__ __forceinline__ Stages(const TileProduct<T>& p, Index row, Index column)
      : p_(p), row_(row), column_(column) {}

  // The next stage into registers; false where there is none.
  __device__ __forceinline__ bool fetch() {
    if (stages_ == 0) {
      if (term_ == p_.term_count) return false;
      open(p_.terms[term_++]);
    }
    --stages_;
    left_reader_.next(left_);
    right_reader_.next(right_);
    return true;
  }

  template <class Tile>
  __device__ __forceinline__ void put(T* left, T* right) const {
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    if (by_depth_) {
      Tile::put_by_depth(left, kQuads * warp, 4 * lane, left_);
    } else {
#pragma unroll
      for (int q = 0; q < kQuads; ++q) {
        const int depth = 4 * (int(threadIdx.x) % 2) + 8 * q;
        Tile::put_transposed(left, depth, int(threadIdx.x) / 2, left_[q]);
      }
    }
    Tile::put_by_depth(right, kQuads * warp, 4 * lane, right_);
  }

 private:
  __device__ __forceinline__ void open(const Term<T>& term) {
    by_depth_ = term.left_by_depth;
    if (by_depth_) {
      left_reader_.by_depth(term.left, term.left_stride, row_, p_.rows, term.depth);
    } else {
      left_reader_.by_rows(term.left, term.left_stride, row_, p_.rows, term.depth);
    }
    right_reader_.by_depth(term.right, term.right_stride, column_, p_.columns, term.depth);
    stages_ = int((term.depth + kDepth - 1) / kDepth);
  }

  const TileProduct<T>& p_;
  const Index row_, column_;
  int term_ = 0, stages_ = 0;
  bool by_depth_ = false;
  Reader<T> left_reader_, right_reader_;
  Vec4<T> left_[kQuads], right_[kQuads];
};

template <class T>
__device__ __forceinline__ void finish_quad(const TileProduct<T>& p, Index row, Index column,
                                            Vec4<T> v) {
  if (row >= p.rows || column >= p.columns) return;
  T* const to = p.to + row * p.to_stride + column;
  Vec4<T> other{{0, 0, 0, 0}};
  switch (p.finish) {
    case Finish::store:
    case Finish::activate:
      break;
    case Finish::add:
      if (!p.first) other = load4(to);
#pragma unroll
      for (int j = 0; j < 4; ++j) v.x[j] += other.x[j];
      break;
    case Finish::multiply:
      other = load4(p.factor + row * p.factor_stride + column);
#pragma unroll
      for (int j = 0; j < 4; ++j) v.x[j] *= other.x[j];
      break;
    case Finish::slope: {
      const Index at = row * p.cache_stride + column;
      v = slope_times(*p.layer, p.values + at, p.slopes_read ? p.slopes_read + at : nullptr, v);
      break;
    }
  }
  store4(to, v);
}

// z -> [phi(z), 1, padding] of a tile that this block has just stored, element by element.
template <class T>
__device__ __noinline__ void activate_tile(const TileProduct<T>& p, Index row, Index column) {
  const LayerPlan& layer = *p.layer;
  __syncthreads();
  const bool last = column + kTile >= p.columns;
  const int width = int(last ? round_up4(layer.out + 1) - column : kTile);
  const int height = int(p.rows - row < kTile ? p.rows - row : kTile);
#pragma unroll 1
  for (int i = threadIdx.x; i < height * width; i += kThreads) {
    const Index r = row + i / width, c = column + i % width;
    T& element = p.to[r * p.to_stride + c];
    ActivationValue<T> a{T(c == layer.out), T(0)};
    if (c < layer.out) a = activate(layer.activation, element, T(layer.parameter));
    element = a.value;
    if (p.slopes != nullptr && c < layer.out_padded) p.slopes[r * p.cache_stride + c] = a.slope;
  }
}

// One tile of p, rows and columns from `row` and `column` on, by this block. Two stages of two
// operands start `offset` elements into shared memory: an offset and no pointer, so that the
// compiler sees what memory it is.
template <class Tile, class T>
__device__ __noinline__ void compute_tile(const TileProduct<T>& p, Index row, Index column,
                                          int offset) {
  constexpr int kOperand = Tile::kDepth * kTileStride;
  Tile tile;
  Stages<T> stages(p, row, column);
  bool more = stages.fetch();
  for (int turn = 0; more; turn = 1 - turn) {
    T* const left = reinterpret_cast<T*>(dynamic_shared()) + offset + 2 * turn * kOperand;
    T* const right = left + kOperand;
    stages.template put<Tile>(left, right);
    __syncthreads();
    more = stages.fetch();
    tile.multiply(left, right);
  }
  __syncthreads();
  tile.each([&](int r, int c, const Vec4<T>& v) { finish_quad(p, row + r, column + c, v); });
  if (p.finish == Finish::activate) activate_tile(p, row, column);
}

// This block's tiles of p. `taken`: tiles of this phase that came before, so that the products of a
// phase are dealt to the blocks as one list.
template <class T>
__device__ void run_tiles(const TileProduct<T>& p, Products products, Index& taken, int offset) {
  const Index grid = gridDim.x, across = p.tiles_across(), count = p.tiles();
  for (Index i = (blockIdx.x + grid - taken % grid) % grid; i < count; i += grid) {
    const Index row = i / across * kTile, column = i % across * kTile;
    if constexpr (sizeof(T) == 4) {
      switch (products) {
        case Products::exact:
          break;
        case Products::tf32:
          compute_tile<TensorTile<Products::tf32>>(p, row, column, offset);
          continue;
        case Products::bf16:
          compute_tile<TensorTile<Products::bf16>>(p, row, column, offset);
          continue;
        case Products::bf16x3:
          compute_tile<TensorTile<Products::bf16x3>>(p, row, column, offset);
          continue;
      }
    }
    compute_tile<ScalarTile<T>>(p, row, column, offset);
  }
  taken += count;
}

}  // namespace trpo_fast::cuda
