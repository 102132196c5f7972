#include "cpu/kernels/bf16_kernels.inl"

namespace trpo_fast {

const KernelTable& dense_kernels_baseline() {
  static constexpr KernelTable table{"baseline", kernels<float>(), kernels<double>(),
                                     bf16_kernels()};
  return table;
}

}  // namespace trpo_fast
