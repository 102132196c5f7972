#include "dense_kernels.inl"

namespace trpo_fast {

const KernelTable& dense_kernels_avx512() {
  static constexpr KernelTable table{"avx512", kernels<float>(), kernels<double>()};
  return table;
}

}  // namespace trpo_fast
