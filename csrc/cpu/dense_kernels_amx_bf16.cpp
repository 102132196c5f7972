#include "amx_product.inl"

namespace trpo_fast {

// Those of avx512_bf16, but for the one product that tiles compute.
const KernelTable& dense_kernels_amx_bf16() {
  static const KernelTable table = [] {
    KernelTable made = dense_kernels_avx512_bf16();
    made.isa = "amx_bf16";
    made.bf16.product = amx_product<HardwareTiles>;
    return made;
  }();
  return table;
}

}  // namespace trpo_fast
