#include "dense_kernels.inl"

namespace trpo_fast {

const KernelTable& dense_kernels_baseline() {
  static constexpr KernelTable table{"baseline", kernels<float>(), kernels<double>()};
  return table;
}

}  // namespace trpo_fast
