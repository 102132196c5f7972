#include "cpu/kernels/bf16_kernels.inl"

namespace trpo_fast {

const KernelTable& dense_kernels_avx512() {
  static constexpr KernelTable table{"avx512", kernels<float>(), kernels<double>(), bf16_kernels()};
  return table;
}

}  // namespace trpo_fast
