// Tensor cores: one multiply-add of a warp's fragments with sums in float32, and how float32
// becomes their operands. Fragment layouts: PTX ISA, "Matrix Fragments for mma.m16n8k8" (tf32) and
// "for mma.m16n8k16" (bf16). Both are the same in words of 32 bits: row g = lane / 4 of A and
// column g of B hold words t = lane % 4 and t + 4 of a depth of 8 words, and a word is one tf32 or
// two neighbouring bfloat16.
#pragma once

#include "cuda/device.cuh"

namespace trpo_fast::cuda {

using Word = std::uint32_t;
constexpr int kFragmentDepth = 8;  // words

struct FragmentA {
  Word x[4];  // (g, t), (g + 8, t), (g, t + 4), (g + 8, t + 4)
};
struct FragmentB {
  Word x[2];  // (t, g), (t + 4, g)
};

#if defined(TRPO_FAST_EMULATION)
__device__ inline Word tf32_word(float value) {
  return emulation::tf32_word(value);
}
__device__ inline Word bf16_pair(float low, float high) {
  return emulation::bf16_pair(low, high);
}
template <bool kBf16>
__device__ inline void multiply_add(float (&sums)[4], const FragmentA& a, const FragmentB& b) {
  emulation::multiply_add(kBf16, sums, a.x, b.x);
}
#elif defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 800
// Never launched there: the host refuses reduced precision (require_precision).
__device__ inline Word tf32_word(float) {
  return 0;
}
__device__ inline Word bf16_pair(float, float) {
  return 0;
}
template <bool kBf16>
__device__ inline void multiply_add(float (&)[4], const FragmentA&, const FragmentB&) {
  __trap();
}
#else
// To the nearest, ties away from zero.
__device__ __forceinline__ Word tf32_word(float value) {
  Word word;
  asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(word) : "f"(value));
  return word;
}
// To the nearest, ties to even.
__device__ __forceinline__ Word bf16_pair(float low, float high) {
  Word word;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(word) : "f"(high), "f"(low));
  return word;
}
// volatile: all lanes must arrive together, so it may not move into a branch that some take.
template <bool kBf16>
__device__ __forceinline__ void multiply_add(float (&sums)[4], const FragmentA& a,
                                             const FragmentB& b) {
  if constexpr (kBf16) {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
        "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3])
        : "r"(a.x[0]), "r"(a.x[1]), "r"(a.x[2]), "r"(a.x[3]), "r"(b.x[0]), "r"(b.x[1]));
  } else {
    asm volatile(
        "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 "
        "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3])
        : "r"(a.x[0]), "r"(a.x[1]), "r"(a.x[2]), "r"(a.x[3]), "r"(b.x[0]), "r"(b.x[1]));
  }
}
#endif

// The two numbers of a pair, exactly.
__device__ __forceinline__ float word_as_float(Word word) {
#if defined(__CUDA_ARCH__)
  return __uint_as_float(word);
#else
  float value;
  std::memcpy(&value, &word, sizeof(value));
  return value;
#endif
}
__device__ __forceinline__ float low_of(Word pair) {
  return word_as_float(pair << 16);
}
__device__ __forceinline__ float high_of(Word pair) {
  return word_as_float(pair & 0xffff0000u);
}

}  // namespace trpo_fast::cuda
