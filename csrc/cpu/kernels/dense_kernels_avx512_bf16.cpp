#include "cpu/kernels/bf16_kernels.inl"

namespace trpo_fast {

const KernelTable& dense_kernels_avx512_bf16() {
  static constexpr KernelTable table{"avx512_bf16", kernels<float>(), kernels<double>(),
                                     bf16_kernels()};
  return table;
}

}  // namespace trpo_fast
