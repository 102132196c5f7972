// Part of the body of dense_kernels_<isa>.cpp: see bf16_kernels.h.
#include "cpu/kernels/bf16_kernels.h"
#include "cpu/kernels/dense_kernels.inl"
#if defined(__AVX512BF16__)
#include <immintrin.h>
#endif

namespace trpo_fast {
namespace {

typedef Pair PairVector __attribute__((vector_size(kVectorBytes)));
typedef Bf16 Bf16Vector __attribute__((vector_size(kVectorBytes / 2)));
constexpr int kFloats = kLanes<float>;

inline PairVector load_pairs(const Pair* from) {
  PairVector v;
  std::memcpy(&v, from, sizeof v);
  return v;
}
inline Bf16Vector load_rounded(const Bf16* from) {
  Bf16Vector v;
  std::memcpy(&v, from, sizeof v);
  return v;
}
inline void store_rounded(Bf16* to, Bf16Vector v) {
  std::memcpy(to, &v, sizeof v);
}

inline PairVector words(Bf16Vector v) {
  return __builtin_convertvector(v, PairVector);
}
inline Vector<float> low_half(PairVector v) {
  return bits_as<Vector<float>>(v << 16);
}
inline Vector<float> high_half(PairVector v) {
  return bits_as<Vector<float>>(v & 0xFFFF0000u);
}
inline Vector<float> widened(Bf16Vector v) {
  return low_half(words(v));
}

// To the nearest, ties to even.
inline Bf16Vector rounded(Vector<float> x) {
#if defined(__AVX512BF16__)
  return bits_as<Bf16Vector>(_mm512_cvtneps_pbh(bits_as<__m512>(x)));
#else
  const PairVector bits = bits_as<PairVector>(x);
  const PairVector up = bits + 0x7FFFu + ((bits >> 16) & 1u);
  constexpr Pair kNan = 0x7FC00000u;  // rounding up might carry a NaN's bits over into 0
  const PairVector safe = x == x ? up : PairVector{} + kNan;
  return __builtin_convertvector(safe >> 16, Bf16Vector);
#endif
}

// acc[MR, NV vectors] += left[MR, count] right[count, NV vectors], both in pairs.
template <int MR, int NV>
inline __attribute__((always_inline)) void multiply_pairs(Vector<float> (&acc)[MR][NV],
                                                          const Pair* left, Index m_stride,
                                                          Index k_stride, const Pair* right,
                                                          Index right_stride, Index count) {
  for (Index k = 0; k < count; ++k) {
#if defined(__AVX512BF16__)
    __m512bh b[NV];
#pragma GCC unroll 16
    for (int v = 0; v < NV; ++v) b[v] = bits_as<__m512bh>(load_pairs(right + v * kFloats));
#pragma GCC unroll 16
    for (int m = 0; m < MR; ++m) {
      const __m512bh a = bits_as<__m512bh>(_mm512_set1_epi32(int(left[m * m_stride])));
#pragma GCC unroll 16
      for (int v = 0; v < NV; ++v) {
        acc[m][v] = bits_as<Vector<float>>(_mm512_dpbf16_ps(bits_as<__m512>(acc[m][v]), a, b[v]));
      }
    }
#else
    // One half after the other: both at once would not leave enough registers for the sums.
#pragma GCC unroll 2
    for (int half = 0; half < 2; ++half) {
      const auto side = [half](PairVector v) { return half == 0 ? low_half(v) : high_half(v); };
      Vector<float> b[NV];
#pragma GCC unroll 16
      for (int v = 0; v < NV; ++v) b[v] = side(load_pairs(right + v * kFloats));
#pragma GCC unroll 16
      for (int m = 0; m < MR; ++m) {
        const Vector<float> a = side(PairVector{} + left[m * m_stride]);
#pragma GCC unroll 16
        for (int v = 0; v < NV; ++v) acc[m][v] += a * b[v];
      }
    }
#endif
    left += k_stride;
    right += right_stride;
  }
}

inline void store_split(const SplitRows& to, Index at, Vector<float> x) {
  const Bf16Vector hi = rounded(x);
  store_rounded(to.part[0] + at, hi);
  if (to.part[1] != nullptr) store_rounded(to.part[1] + at, rounded(x - widened(hi)));
}

inline Vector<float> load_split(const SplitRows& from, Index at) {
  const Vector<float> hi = widened(load_rounded(from.part[0] + at));
  return from.part[1] == nullptr ? hi : hi + widened(load_rounded(from.part[1] + at));
}

// A row of a finished tile, NV vectors.
template <int NV>
inline void finish_pairs(const PairProduct& p, const Vector<float> (&c)[NV], Index m, Index slab,
                         Index column) {
  if (p.C != nullptr) {
    float* const to = p.C + slab * p.c_slab_stride + m * p.c_stride + column;
#pragma GCC unroll 16
    for (int v = 0; v < NV; ++v) {
      store(to + v * kFloats, p.accumulate ? load(to + v * kFloats) + c[v] : c[v]);
    }
    return;
  }
  const Index at = slab * p.rounded.slab_stride + m * p.rounded.stride + column;
  const Index slope = slab * p.slope.slab_stride + m * p.slope.stride + column;
#pragma GCC unroll 16
  for (int v = 0; v < NV; ++v) {
    store_split(p.rounded, at + v * kFloats, c[v] * load_split(p.slope, slope + v * kFloats));
  }
}

template <int MR, int NV>
void pair_tile(const PairProduct& p, Index block, Index row, Index slab, Index column) {
  const Index m = block * p.terms[0].left.m_block + row;
  if (p.ahead != nullptr && column == 0) {
    fetch_ahead(p.ahead, p.ahead_count, slab * p.M + m, MR, p.M * p.N.count);
  }
  Vector<float> acc[MR][NV];
  const float* bias = p.bias ? p.bias + slab * p.N.width + column : nullptr;
#pragma GCC unroll 16
  for (int v = 0; v < NV; ++v) {
    const Vector<float> start = bias ? load(bias + v * kFloats) : Vector<float>{};
#pragma GCC unroll 16
    for (int r = 0; r < MR; ++r) acc[r][v] = start;
  }
  for (int t = 0; t < p.term_count; ++t) {
    const LeftOperand<Pair>& left = p.terms[t].left;
    const RightOperand<Pair>& right = p.terms[t].right;
    const Pair* a = left.data + block * left.m_block_stride + row * left.m_stride;
    const Pair* b = right.data + slab * right.slab_stride + column;
    for (Index k = 0; k < p.terms[t].K; k += left.k_block) {
      const Index rest = p.terms[t].K - k;
      const Index count = rest < left.k_block ? rest : left.k_block;
      multiply_pairs<MR, NV>(acc, a, left.m_stride, left.k_stride, b, right.k_stride, count);
      a += left.k_block_stride;
      b += count * right.k_stride;
    }
  }
#pragma GCC unroll 16
  for (int r = 0; r < MR; ++r) finish_pairs<NV>(p, acc[r], m + r, slab, column);
}

template <int MR, int NV>
void pair_tile_of(const PairProduct& p, Index rows, Index block, Index row, Index slab,
                  Index column) {
  if (rows == MR) {
    pair_tile<MR, NV>(p, block, row, slab, column);
  } else if constexpr (MR > 1) {
    pair_tile_of<MR - 1, NV>(p, rows, block, row, slab, column);
  }
}

template <int NV>
void pair_columns(const PairProduct& p, Index slab, Index column) {
  constexpr int MR = tile_rows<NV>();
  const Index size = p.terms[0].left.m_block;  // every term's
  for (Index block = 0, rest = p.M; rest > 0; ++block, rest -= size) {
    const Index rows = rest < size ? rest : size;
    Index row = 0;
    for (; row + MR <= rows; row += MR) pair_tile<MR, NV>(p, block, row, slab, column);
    if (row < rows) pair_tile_of<MR - 1, NV>(p, rows - row, block, row, slab, column);
  }
}

inline void pair_product(const PairProduct& p) {
  for_column_groups<float>(p.N, [&](auto vectors, Index slab, Index column) {
    pair_columns<decltype(vectors)::value>(p, slab, column);
  });
}

inline void round_values(const float* from, Index count, Bf16* hi, Bf16* lo) {
  const SplitRows to{{hi, lo}};
  for (Index i = 0; i < count; i += kFloats) store_split(to, i, load(from + i));
}

inline void round_slopes(Slope how, const float* from, Index count, Bf16* hi, Bf16* lo) {
  const SplitRows to{{hi, lo}};
  const Vector<float> one = broadcast(1.0f);
  for (Index i = 0; i < count; i += kFloats) {
    Vector<float> x = load(from + i);
    if (how == Slope::of_tanh) x = one - x * x;
    if (how == Slope::of_relu) x = select<float>(x > 0.0f, one, Vector<float>{});
    if (how == Slope::one) x = one;
    store_split(to, i, x);
  }
}

inline void pair_rows(const Bf16* rows, Index count, Index width, Pair* pairs) {
  for (Index r = 0; r < count; r += 2, rows += 2 * width, pairs += width) {
    for (Index c = 0; c < width; c += kFloats) {
      PairVector both = words(load_rounded(rows + c));
      if (r + 1 < count) both |= words(load_rounded(rows + width + c)) << 16;
      std::memcpy(pairs + c, &both, sizeof both);
    }
  }
}

inline void pair_column_sums(const Pair* pairs, Index count, Index width, float* sums) {
  for (Index column = 0; column < width; column += kFloats) {
    Vector<float> low = load(sums + column), high{};
    for (Index r = 0; r < count; ++r) {
      const PairVector v = load_pairs(pairs + r * width + column);
      low += low_half(v);
      high += high_half(v);
    }
    store(sums + column, low + high);
  }
}

constexpr Bf16Kernels bf16_kernels() {
#if defined(__AVX512BF16__)
  constexpr bool instruction = true;
#else
  constexpr bool instruction = false;
#endif
  return {instruction, pair_product, round_values, round_slopes, pair_rows, pair_column_sums};
}

}  // namespace
}  // namespace trpo_fast
