#include "dense_kernels.inl"

namespace trpo_fast {

const KernelTable& dense_kernels_avx2() {
  static constexpr KernelTable table{"avx2", kernels<float>(), kernels<double>()};
  return table;
}

}  // namespace trpo_fast
