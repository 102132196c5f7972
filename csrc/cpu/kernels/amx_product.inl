// PairProduct by tiles, for any `Tiles` with the operations of HardwareTiles: those of the CPU, or
// the model that the tests run (tests/native/emulation/amx_model.h).
//
// A block of the result is up to 2 x 2 tiles, fed by two tiles of each operand. The right operand
// is in a tile's order as it is, and so is the left one of a forward or backward product. That of a
// weight gradient has its pairs one below the other: its rows are transposed into scratch, once for
// all columns. Whatever does not fill a tile is copied and padded with zeros.
#include "cpu/kernels/amx_tiles.h"
#include "cpu/kernels/bf16_kernels.inl"
#if defined(__SSE2__)
#include <immintrin.h>
#endif

namespace trpo_fast {
namespace {

constexpr Index kTileSize = kTileRows * kTileWords;
constexpr Index kBlockRows = 2 * kTileRows;
// Pairs along K, over all terms, of a block's rows that are transposed at once: 72 KiB of stack,
// three terms of the longest panel. Longer products are left to the vector kernel.
constexpr Index kTransposedPairs = 576;

struct TileView {
  const Pair* data;
  Index stride;  // words

  TRPO_FAST_INLINE Index bytes() const { return stride * Index(sizeof(Pair)); }
};

// A whole tile of what has only so many rows and words, in `room` unless it is whole already.
inline TileView whole_tile(TileView part, Index rows, Index words, Pair* room) {
  if (rows == kTileRows && words == kTileWords) return part;
  for (Index r = 0; r < kTileRows; ++r) {
    const Pair* const from = part.data + (r < rows ? r * part.stride : 0);
    Pair* const to = room + r * kTileWords;
#if defined(__AVX512F__)
    const __mmask16 mask = r < rows ? __mmask16((1u << words) - 1u) : __mmask16(0);
    _mm512_storeu_si512(to, _mm512_maskz_loadu_epi32(mask, from));
#else
    for (Index w = 0; w < kTileWords; ++w) to[w] = r < rows && w < words ? from[w] : 0;
#endif
  }
  return {room, kTileWords};
}

inline const Pair* row_of(const LeftOperand<Pair>& left, Index m) {
  return left.data + m / left.m_block * left.m_block_stride + m % left.m_block * left.m_stride;
}

// Tiles 0 to 3 are the result's, 4 and 5 the left operand's, 6 and 7 the right one's.
template <class Tiles, int MT, int NT>
inline void multiply_tiles() {
  Tiles::template multiply<0, 4, 6>();
  if constexpr (NT > 1) Tiles::template multiply<1, 4, 7>();
  if constexpr (MT > 1) Tiles::template multiply<2, 5, 6>();
  if constexpr (MT > 1 && NT > 1) Tiles::template multiply<3, 5, 7>();
}

// Up to 16 pairs of one term: left [rows, pairs], right [pairs, NT tiles].
template <class Tiles, int MT, int NT>
inline void tile_step(TileView left, Index rows, TileView right, Index pairs, Pair* room) {
  const auto a = [&](Index tile) {
    const Index first = tile * kTileRows, rest = rows - first;
    return whole_tile({left.data + first * left.stride, left.stride},
                      rest < kTileRows ? rest : kTileRows, pairs, room + tile * kTileSize);
  };
  const auto b = [&](Index tile) {
    return whole_tile({right.data + tile * kTileWords, right.stride}, pairs, kTileWords,
                      room + (2 + tile) * kTileSize);
  };
  const TileView a0 = a(0), b0 = b(0);
  Tiles::template load<4>(a0.data, a0.bytes());
  Tiles::template load<6>(b0.data, b0.bytes());
  if constexpr (NT > 1) {
    const TileView b1 = b(1);
    Tiles::template load<7>(b1.data, b1.bytes());
  }
  if constexpr (MT > 1) {
    const TileView a1 = a(1);
    Tiles::template load<5>(a1.data, a1.bytes());
  }
  multiply_tiles<Tiles, MT, NT>();
}

// The result's tiles as they start: the bias in every row, or zeros.
template <class Tiles, int MT, int NT>
inline void start_tiles(const float* bias) {
  if (bias != nullptr) {
    Tiles::template load<0>(bias, 0);
    if constexpr (NT > 1) Tiles::template load<1>(bias + kTileWords, 0);
    if constexpr (MT > 1) Tiles::template load<2>(bias, 0);
    if constexpr (MT > 1 && NT > 1) Tiles::template load<3>(bias + kTileWords, 0);
  } else {
    Tiles::template zero<0>();
    if constexpr (NT > 1) Tiles::template zero<1>();
    if constexpr (MT > 1) Tiles::template zero<2>();
    if constexpr (MT > 1 && NT > 1) Tiles::template zero<3>();
  }
}

template <class Tiles, int MT, int NT>
inline void finish_tiles(const PairProduct& p, Index m, Index rows, Index slab, Index column) {
  constexpr Index width = NT * kTileWords, stride = width * Index(sizeof(float));
  constexpr int NV = int(width) / kFloats;
  alignas(kAlignment) float sums[MT * kTileRows * width];
  Tiles::template store<0>(sums, stride);
  if constexpr (NT > 1) Tiles::template store<1>(sums + kTileWords, stride);
  if constexpr (MT > 1) Tiles::template store<2>(sums + kTileRows * width, stride);
  if constexpr (MT > 1 && NT > 1) {
    Tiles::template store<3>(sums + kTileRows * width + kTileWords, stride);
  }
  for (Index r = 0; r < rows; ++r) {
    Vector<float> c[NV];
#pragma GCC unroll 16
    for (int v = 0; v < NV; ++v) c[v] = load(sums + r * width + v * kFloats);
    finish_pairs<NV>(p, c, m + r, slab, column);
  }
}

// A block of the result: rows m .. m + rows, which are rows `at` .. of the left operands.
template <class Tiles, int MT, int NT>
void tile_block(const PairProduct& p, const Term<Pair>* terms, Index at, Index m, Index rows,
                Index slab, Index column) {
  alignas(kAlignment) Pair room[4 * kTileSize];
  if (p.ahead != nullptr && column == 0) {
    fetch_ahead(p.ahead, p.ahead_count, slab * p.M + m, rows, p.M * p.N.count);
  }
  start_tiles<Tiles, MT, NT>(p.bias ? p.bias + slab * p.N.width + column : nullptr);
  for (const Term<Pair>* term = terms; term != terms + p.term_count; ++term) {
    const LeftOperand<Pair>& left = term->left;
    const RightOperand<Pair>& right = term->right;
    const Pair* a = row_of(left, at);
    const Pair* b = right.data + slab * right.slab_stride + column;
    for (Index k = 0; k < term->K; k += left.k_block) {
      const Index rest = term->K - k;
      const Index count = rest < left.k_block ? rest : left.k_block;
      for (Index j = 0; j < count; j += kTileWords) {
        const Index pairs = count - j < kTileWords ? count - j : kTileWords;
        tile_step<Tiles, MT, NT>({a + j, left.m_stride}, rows,
                                 {b + j * right.k_stride, right.k_stride}, pairs, room);
      }
      a += left.k_block_stride;
      b += count * right.k_stride;
    }
  }
  finish_tiles<Tiles, MT, NT>(p, m, rows, slab, column);
}

template <class Tiles>
void tile_block_of(const PairProduct& p, const Term<Pair>* terms, Index at, Index m, Index rows,
                   Index slab, Index column) {
  const bool tall = rows > kTileRows, wide = p.N.used(slab) - column > kTileWords;
  if (tall && wide) return tile_block<Tiles, 2, 2>(p, terms, at, m, rows, slab, column);
  if (tall) return tile_block<Tiles, 2, 1>(p, terms, at, m, rows, slab, column);
  if (wide) return tile_block<Tiles, 1, 2>(p, terms, at, m, rows, slab, column);
  tile_block<Tiles, 1, 1>(p, terms, at, m, rows, slab, column);
}

template <class Body>
inline void for_block_columns(const Slabs& N, const Body& body) {
  for (Index slab = 0; slab < N.count; ++slab) {
    for (Index column = 0; column < N.used(slab); column += 2 * kTileWords) body(slab, column);
  }
}

// body(m, rows): blocks of rows, none across two of the left operand's blocks.
template <class Body>
inline void for_block_rows(const PairProduct& p, const Body& body) {
  const Index length = p.terms[0].left.m_block;
  for (Index m = 0; m < p.M;) {
    const Index inside = length - m % length, left = p.M - m;
    const Index most = inside < kBlockRows ? inside : kBlockRows;
    const Index rows = left < most ? left : most;
    body(m, rows);
    m += rows;
  }
}

// to[r][k] = from[k][r]
inline void transpose(const Pair* from, Index from_stride, Index pairs, Index rows, Pair* to,
                      Index to_stride) {
  Index whole_pairs = 0, whole_rows = 0;
#if defined(__SSE2__)
  whole_pairs = pairs / 4 * 4, whole_rows = rows / 4 * 4;
  for (Index k = 0; k < whole_pairs; k += 4) {
    for (Index r = 0; r < whole_rows; r += 4) {
      __m128 v[4];
      for (Index i = 0; i < 4; ++i) std::memcpy(&v[i], from + (k + i) * from_stride + r, 16);
      _MM_TRANSPOSE4_PS(v[0], v[1], v[2], v[3]);
      for (Index i = 0; i < 4; ++i) std::memcpy(to + (r + i) * to_stride + k, &v[i], 16);
    }
  }
#endif
  for (Index r = 0; r < rows; ++r) {
    for (Index k = r < whole_rows ? whole_pairs : 0; k < pairs; ++k) {
      to[r * to_stride + k] = from[k * from_stride + r];
    }
  }
}

enum class LeftOrder { pairs_beside, pairs_below, other };

// How a tile finds the pairs of every term's left operand.
inline LeftOrder left_order(const PairProduct& p) {
  Index pairs = 0;
  bool beside = true, below = true;
  for (int t = 0; t < p.term_count; ++t) {
    const LeftOperand<Pair>& left = p.terms[t].left;
    pairs += p.terms[t].K;
    beside = beside && left.k_stride == 1;
    below = below && left.m_stride == 1 && left.k_block >= p.terms[t].K;
  }
  if (beside) return LeftOrder::pairs_beside;
  return below && pairs <= kTransposedPairs ? LeftOrder::pairs_below : LeftOrder::other;
}

template <class Tiles>
void transposed_product(const PairProduct& p) {
  alignas(kAlignment) Pair room[kBlockRows * kTransposedPairs];
  Term<Pair> terms[kMaxPairTerms];
  for_block_rows(p, [&](Index m, Index rows) {
    Pair* to = room;
    for (int t = 0; t < p.term_count; ++t) {
      const Term<Pair>& from = p.terms[t];
      transpose(row_of(from.left, m), from.left.k_stride, from.K, rows, to, from.K);
      terms[t] = from;
      terms[t].left = {to, from.K, kBlockRows, 0, 1, from.K, 0};
      to += kBlockRows * from.K;
    }
    for_block_columns(p.N, [&](Index slab, Index column) {
      tile_block_of<Tiles>(p, terms, 0, m, rows, slab, column);
    });
  });
}

template <class Tiles>
void amx_product(const PairProduct& p) {
  static constexpr TileConfig config = whole_tiles();
  const LeftOrder order = left_order(p);
  if (order == LeftOrder::other) return pair_product(p);
  Tiles::configure(config);
  if (order == LeftOrder::pairs_below) {
    transposed_product<Tiles>(p);
  } else {
    for_block_columns(p.N, [&](Index slab, Index column) {
      for_block_rows(p, [&](Index m, Index rows) {
        tile_block_of<Tiles>(p, p.terms, m, m, rows, slab, column);
      });
    });
  }
  Tiles::release();  // no state for the kernel to save, none for the next caller to find
}

}  // namespace
}  // namespace trpo_fast
