// Tensor cores in a warp's registers: rows of sums as the left operand of the next product, right
// operands as words in shared memory that a lane reads 16 bytes at a time, and products over rows.
#pragma once

#include "cuda/tensor_cores.cuh"

namespace trpo_fast::cuda {

template <Products kHow>
struct TensorOperands {
  static constexpr int kTiles = kTensorTiles, kRowTiles = kTensorRowTiles, kStride = kTensorStride;
  static constexpr bool kBf16 = kHow != Products::tf32;
  static constexpr bool kSplit = kHow == Products::bf16x3;
  static constexpr int kParts = kSplit ? 2 : 1;
  static constexpr int kStepTiles = kBf16 ? 2 : 1;  // tiles that a fragment's depth covers
  static constexpr int kSteps = kTiles / kStepTiles;
  static constexpr int kWordRows = kBf16 ? 8 : 16;  // of a row tile in shared memory
  static constexpr int kRun = 5;  // neighbouring tiles of a weight gradient in a warp's registers

  // Sums of a warp's rows as multiply_add leaves them: of row g = lane / 4 of a row tile columns
  // 2 (lane % 4) and the next, then the same of row g + 8.
  struct Rows {
    float x[kRowTiles][kTiles][4];
  };
  // Of one step of depth, high parts and low ones.
  struct Operand {
    FragmentA part[kParts];
  };

  __device__ static int warp() { return int(threadIdx.x) / 32; }
  __device__ static int lane() { return int(threadIdx.x) % 32; }
  __device__ static int group() { return lane() / 4; }
  __device__ static int across() { return lane() % 4; }
  // A warp's row tiles are dealt as cards, so that a small panel has work for many.
  __device__ static int tile_of(int i) { return warp() + kWarps * i; }

  __device__ static void put_word(Word* to, int low, float even, float odd) {
    if constexpr (kBf16) {
      const Word high = bf16_pair(even, odd);
      *to = high;
      if (kSplit) to[low] = bf16_pair(even - low_of(high), odd - high_of(high));
    } else {
      *to = tf32_word(even);
    }
  }

  // The words of a right operand, element(depth, column): for every step of depth and pair of
  // column tiles the four of each lane. Depth is numbered as `fragment` numbers it.
  template <class Element>
  __device__ static void pack_operand(Word* to, int steps, int pairs, Element&& element) {
    const int size = steps * pairs * kPairWords;
    for (int i = threadIdx.x; i < size; i += kThreads) {
      const int half = i % 2, of = i / 4 % 32, block = i / kPairWords;
      const int column = 16 * (block % pairs) + 8 * (i / 2 % 2) + of / 4;
      const int step = block / pairs;
      if constexpr (kBf16) {
        const int depth = 16 * step + 8 * half + 2 * (of % 4);
        put_word(to + i, size, element(depth, column), element(depth + 1, column));
      } else {
        put_word(to + i, size, element(8 * step + 2 * (of % 4) + half, column), 0);
      }
    }
  }

  // The left operand of a step: of one tile (tf32, the second is not read) or of two neighbours.
  // tf32: words t and t + 4 of the depth are columns 2 t and 2 t + 1. bf16: pairs in their order.
  __device__ __forceinline__ static Operand fragment(const float (&first)[4],
                                                     const float (&second)[4]) {
    if constexpr (kBf16) {
      const FragmentA high{{bf16_pair(first[0], first[1]), bf16_pair(first[2], first[3]),
                            bf16_pair(second[0], second[1]), bf16_pair(second[2], second[3])}};
      if constexpr (kSplit) {
        const auto rest = [&](int word, float even, float odd) {
          return bf16_pair(even - low_of(high.x[word]), odd - high_of(high.x[word]));
        };
        return {{high,
                 {{rest(0, first[0], first[1]), rest(1, first[2], first[3]),
                   rest(2, second[0], second[1]), rest(3, second[2], second[3])}}}};
      } else {
        return {{high}};
      }
    } else {
      return {
          {{{tf32_word(first[0]), tf32_word(first[2]), tf32_word(first[1]), tf32_word(first[3])}}}};
    }
  }

  // sums += left right, one step of depth; right: that step's words, low parts `low` behind.
  __device__ __forceinline__ static void add_step(Rows& sums, const Operand (&left)[kRowTiles],
                                                  const Word* right, int low, int pairs) {
#pragma unroll
    for (int p = 0; p < kTiles / 2; ++p) {
      if (p >= pairs) break;
      const Word* const at = right + p * kPairWords + 4 * lane();
      const Vec4<Word> high = load4(at);
      Vec4<Word> rest{};
      if (kSplit) rest = load4(at + low);
#pragma unroll
      for (int j = 0; j < 2; ++j) {
        const FragmentB b{{high.x[2 * j], high.x[2 * j + 1]}};
#pragma unroll
        for (int i = 0; i < kRowTiles; ++i) {
          float (&to)[4] = sums.x[i][2 * p + j];
          if constexpr (kSplit) {
            multiply_add<kBf16>(to, left[i].part[1], b);
            multiply_add<kBf16>(to, left[i].part[0], {{rest.x[2 * j], rest.x[2 * j + 1]}});
          }
          multiply_add<kBf16>(to, left[i].part[0], b);
        }
      }
    }
  }

  __device__ __forceinline__ static void clear(Rows& rows) {
#pragma unroll
    for (int i = 0; i < kRowTiles; ++i) {
#pragma unroll
      for (int j = 0; j < kTiles; ++j) {
#pragma unroll
        for (int e = 0; e < 4; ++e) rows.x[i][j][e] = 0;
      }
    }
  }

  // body(element of `quad`, row of the panel, column of the tile) for what a lane has of a tile.
  template <class Body>
  __device__ __forceinline__ static void each_element(int tile, Body&& body) {
#pragma unroll
    for (int e = 0; e < 4; ++e) body(e, 16 * tile + group() + 8 * (e / 2), 2 * across() + e % 2);
  }

  // sums += left' right over word rows of shared memory, `count` column tiles; low parts lie `low`
  // behind.
  __device__ __forceinline__ static void multiply_staged(float (&sums)[kRun][4], const Word* left,
                                                         const Word* right, int low, int count,
                                                         int word_rows) {
    left += across() * kStride + group();
    right += across() * kStride + group();
    for (int k = 0; k < word_rows; k += kFragmentDepth) {
      Operand a;
#pragma unroll
      for (int part = 0; part < kParts; ++part) {
        const Word* const at = left + part * low;
        a.part[part] = {{at[0], at[8], at[4 * kStride], at[4 * kStride + 8]}};
      }
#pragma unroll
      for (int j = 0; j < kRun; ++j) {
        if (j >= count) break;
        const Word* const at = right + 8 * j;
        const FragmentB b{{at[0], at[4 * kStride]}};
        if constexpr (kSplit) {
          multiply_add<kBf16>(sums[j], a.part[1], b);
          multiply_add<kBf16>(sums[j], a.part[0], {{at[low], at[low + 4 * kStride]}});
        }
        multiply_add<kBf16>(sums[j], a.part[0], b);
      }
      left += kFragmentDepth * kStride;
      right += kFragmentDepth * kStride;
    }
  }
};

}  // namespace trpo_fast::cuda
