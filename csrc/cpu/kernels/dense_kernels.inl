// The body of dense_kernels_<isa>.cpp. Compiled with that file's flags; internal linkage
// throughout.
#include "cpu/kernels/adam.inl"
#include "cpu/kernels/dense_kernels.h"

#include <type_traits>

#include "cpu/kernels/simd.h"
#include "cpu/kernels/vector_math.h"

namespace trpo_fast {
namespace {

// Rows of a register tile NV vectors wide: as many accumulators as leave registers for NV
// right-hand vectors and a broadcast, and at least 8 where they fit, to cover the latency of two
// FMA pipes.
template <int NV>
constexpr int tile_rows() {
  constexpr int free_registers = kVectorRegisters - NV - 2;
  constexpr int rows = free_registers / NV;
  return rows > 12 ? 12 : rows;
}

// acc[MR, NV vectors] += left[MR, count] right[count, NV vectors], k running over one block.
template <class T, int MR, int NV>
inline __attribute__((always_inline)) void multiply_block(Vector<T> (&acc)[MR][NV], const T* left,
                                                          Index m_stride, Index k_stride,
                                                          const T* right, Index right_stride,
                                                          Index count) {
  for (Index k = 0; k < count; ++k) {
    Vector<T> b[NV];
#pragma GCC unroll 16
    for (int v = 0; v < NV; ++v) b[v] = load(right + v * kLanes<T>);
#pragma GCC unroll 16
    for (int m = 0; m < MR; ++m) {
      const Vector<T> a = broadcast(left[m * m_stride]);
#pragma GCC unroll 16
      for (int v = 0; v < NV; ++v) acc[m][v] += a * b[v];
    }
    left += k_stride;
    right += right_stride;
  }
}

// A tile's share of the product's `ahead`: a few lines at a time, which the arithmetic hides; all
// at once would wait for memory as the reads themselves do.
template <class T>
inline void fetch_ahead(const T* ahead, Index count, Index row, Index rows, Index all) {
  constexpr Index line = 64 / Index(sizeof(T));
  const Index end = (row + rows) * count / all;
  for (Index i = row * count / all; i < end; i += line) __builtin_prefetch(ahead + i, 0, 2);
}

template <class T, int MR, int NV, class Body>
inline __attribute__((always_inline)) void store_each(const Vector<T> (&acc)[MR][NV], T* C,
                                                      Index stride, Body&& finished) {
#pragma GCC unroll 16
  for (int r = 0; r < MR; ++r) {
#pragma GCC unroll 16
    for (int v = 0; v < NV; ++v) {
      const Index at = r * stride + v * kLanes<T>;
      store(C + at, finished(acc[r][v], at));
    }
  }
}

// A finished tile, its finish chosen once: at width 64 a choice a vector is a tenth of the product.
template <class T, int MR, int NV>
inline __attribute__((always_inline)) void store_tile(Finish finish, const Vector<T> (&acc)[MR][NV],
                                                      T* C, const T* S, Index stride) {
  using V = Vector<T>;
  const auto each = [&](auto&& finished) { store_each<T, MR, NV>(acc, C, stride, finished); };
  switch (finish) {
    case Finish::store:
      return each([](V c, Index) { return c; });
    case Finish::accumulate:
      return each([&](V c, Index at) { return load(C + at) + c; });
    case Finish::times_slope:
      return each([&](V c, Index at) { return c * load(S + at); });
    case Finish::times_tanh:
      return each([&](V c, Index at) {
        const V a = load(S + at);
        return c * (T(1) - a * a);
      });
    case Finish::times_step:
      return each([&](V c, Index at) { return select<T>(load(S + at) > T(0), c, V{}); });
  }
}

// One register tile: MR rows of an m block, from `row` of it on, NV vectors of columns.
template <class T, int MR, int NV>
void tile(const Product<T>& p, Index block, Index row, Index slab, Index column) {
  const Index m = block * p.terms[0].left.m_block + row;
  if (p.ahead != nullptr && column == 0) {
    fetch_ahead(p.ahead, p.ahead_count, slab * p.M + m, MR, p.M * p.N.count);
  }
  Vector<T> acc[MR][NV];
  const T* bias = p.bias ? p.bias + slab * p.N.width + column : nullptr;
#pragma GCC unroll 16
  for (int v = 0; v < NV; ++v) {
    const Vector<T> start = bias ? load(bias + v * kLanes<T>) : Vector<T>{};
#pragma GCC unroll 16
    for (int r = 0; r < MR; ++r) acc[r][v] = start;
  }
  for (int t = 0; t < p.term_count; ++t) {
    const LeftOperand<T>& left = p.terms[t].left;
    const RightOperand<T>& right = p.terms[t].right;
    const T* a = left.data + block * left.m_block_stride + row * left.m_stride;
    const T* b = right.data + slab * right.slab_stride + column;
    for (Index k = 0; k < p.terms[t].K; k += left.k_block) {
      const Index rest = p.terms[t].K - k;
      const Index count = rest < left.k_block ? rest : left.k_block;
      multiply_block<T, MR, NV>(acc, a, left.m_stride, left.k_stride, b, right.k_stride, count);
      a += left.k_block_stride;
      b += count * right.k_stride;
    }
  }
  const Index offset = slab * p.c_slab_stride + m * p.c_stride + column;
  const T* S = p.S != nullptr ? p.S + offset : nullptr;
  store_tile<T, MR, NV>(p.finish, acc, p.C + offset, S, p.c_stride);
}

template <class T, int MR, int NV>
void tile_of(const Product<T>& p, Index rows, Index block, Index row, Index slab, Index column) {
  if (rows == MR) {
    tile<T, MR, NV>(p, block, row, slab, column);
  } else if constexpr (MR > 1) {
    tile_of<T, MR - 1, NV>(p, rows, block, row, slab, column);
  }
}

// All rows of NV vectors of columns.
template <class T, int NV>
void column_group(const Product<T>& p, Index slab, Index column) {
  constexpr int MR = tile_rows<NV>();
  const Index size = p.terms[0].left.m_block;  // every term's
  for (Index block = 0, rest = p.M; rest > 0; ++block, rest -= size) {
    const Index rows = rest < size ? rest : size;
    Index row = 0;
    for (; row + MR <= rows; row += MR) tile<T, MR, NV>(p, block, row, slab, column);
    if (row < rows) tile_of<T, MR - 1, NV>(p, rows - row, block, row, slab, column);
  }
}

// body(vectors, slab, column) over all columns, in groups of as many vectors as a tile may have.
template <class T, class Body>
inline void for_column_groups(const Slabs& N, Body&& body) {
  constexpr Index lanes = kLanes<T>;
  constexpr int widest = kVectorRegisters >= 32 ? 4 : 2;
  for (Index slab = 0; slab < N.count; ++slab) {
    const Index used = N.used(slab);
    Index column = 0;
    for (; column + widest * lanes <= used; column += widest * lanes) {
      body(std::integral_constant<int, widest>{}, slab, column);
    }
    if constexpr (widest > 2) {
      if (column + 3 * lanes <= used) {
        body(std::integral_constant<int, 3>{}, slab, column);
        column += 3 * lanes;
      }
      if (column + 2 * lanes <= used) {
        body(std::integral_constant<int, 2>{}, slab, column);
        column += 2 * lanes;
      }
    }
    for (; column < used; column += lanes) body(std::integral_constant<int, 1>{}, slab, column);
  }
}

template <class T>
void product(const Product<T>& p) {
  for_column_groups<T>(p.N, [&](auto vectors, Index slab, Index column) {
    column_group<T, decltype(vectors)::value>(p, slab, column);
  });
}

// Activations without a vector form: the shared scalar definition.
template <class T>
void activate_each(Activation activation, T parameter, T* z, T* slope, Index count) {
  for (Index i = 0; i < count; ++i) {
    const ActivationValue<T> out = trpo_fast::activate(activation, z[i], parameter);
    z[i] = out.value;
    if (slope) slope[i] = out.slope;
  }
}

template <class T, class Function>
inline void activate_vectors(T* z, T* slope, Index count, Function function) {
  for (Index i = 0; i < count; i += kLanes<T>) {
    Vector<T> derivative;
    const Vector<T> a = function(load(z + i), derivative);
    store(z + i, a);
    if (slope) store(slope + i, derivative);
  }
}

template <class T>
void activate_panel(Activation activation, T parameter, T* z, T* slope, Index count) {
  using V = Vector<T>;
  const V one = broadcast(T(1));
  switch (activation) {
    case Activation::identity:
      if (slope) activate_vectors(z, slope, count, [&](V x, V& d) { return d = one, x; });
      return;
    case Activation::tanh:
      return activate_vectors(z, slope, count, [&](V x, V& d) {
        const V a = vector_tanh(x);
        d = one - a * a;
        return a;
      });
    case Activation::relu:
      return activate_vectors(z, slope, count, [&](V x, V& d) {
        d = select<T>(x > T(0), one, V{});
        return select<T>(x <= T(0), V{}, x);
      });
    case Activation::leaky_relu:
      return activate_vectors(z, slope, count, [&](V x, V& d) {
        d = select<T>(x > T(0), one, broadcast(parameter));
        return x * d;
      });
    case Activation::elu:
      return activate_vectors(z, slope, count, [&](V x, V& d) {
        const V e = vector_expm1(x);
        d = select<T>(x > T(0), one, parameter * (e + T(1)));
        return select<T>(x > T(0), x, parameter * e);
      });
    case Activation::silu:
      return activate_vectors(z, slope, count, [&](V x, V& d) {
        const V s = vector_sigmoid(x);
        d = s * (one + x * (one - s));
        return x * s;
      });
    case Activation::sigmoid:
      return activate_vectors(z, slope, count, [&](V x, V& d) {
        const V s = vector_sigmoid(x);
        d = s * (one - s);
        return s;
      });
    default:
      return activate_each(activation, parameter, z, slope, count);
  }
}

template <class T>
void column_sums(const T* rows, Index count, Index width, T* sums) {
  for (Index column = 0; column < width; column += kLanes<T>) {
    Vector<T> even = load(sums + column), odd{};
    const T* row = rows + column;
    Index r = 0;
    for (; r + 2 <= count; r += 2, row += 2 * width) {
      even += load(row);
      odd += load(row + width);
    }
    if (r < count) even += load(row);
    store(sums + column, even + odd);
  }
}

// Half a vector of floats fills a vector of doubles.
inline Vector<double> load_double(const double* from) {
  return load(from);
}
inline Vector<double> load_double(const float* from) {
  typedef float Half __attribute__((vector_size(kVectorBytes / 2)));
  Half half;
  std::memcpy(&half, from, sizeof half);
  return __builtin_convertvector(half, Vector<double>);
}

template <class T>
double dot(const T* x, const T* y, Index n) {
  constexpr int lanes = kLanes<double>;
  Vector<double> sums[4] = {};
  Index i = 0;
  for (; i + 4 * lanes <= n; i += 4 * lanes) {
#pragma GCC unroll 4
    for (int u = 0; u < 4; ++u) {
      sums[u] += load_double(x + i + u * lanes) * load_double(y + i + u * lanes);
    }
  }
  double sum = lanes_sum<double>((sums[0] + sums[1]) + (sums[2] + sums[3]));
  for (; i < n; ++i) sum += double(x[i]) * double(y[i]);
  return sum;
}

template <class T>
void add_scaled(T alpha, const T* x, T* y, Index n) {
  Index i = 0;
  for (; i + kLanes<T> <= n; i += kLanes<T>) store(y + i, load(y + i) + alpha * load(x + i));
  for (; i < n; ++i) y[i] += alpha * x[i];
}

template <class T>
void direction(T beta, const T* z, T* p, Index n) {
  Index i = 0;
  for (; i + kLanes<T> <= n; i += kLanes<T>) store(p + i, load(z + i) + beta * load(p + i));
  for (; i < n; ++i) p[i] = z[i] + beta * p[i];
}

template <class T>
constexpr Kernels<T> kernels() {
  return {product<T>,   activate_panel<T>, column_sums<T>, dot<T>,      add_scaled<T>,
          direction<T>, adam<T>,           squares<T>,     row_dots<T>, transpose<T>};
}

}  // namespace
}  // namespace trpo_fast
