// As emulated_amx.cpp, but with the vectors and masked loads that a CPU with AMX has.
#include "amx_model.h"
#include "cpu/kernels/amx_product.inl"
#include "emulated_kernels.h"

namespace trpo_fast {

const KernelTable& emulated_amx_avx512() {
  static const KernelTable table = [] {
    KernelTable made = dense_kernels_avx512_bf16();
    made.isa = "emulated_amx_avx512";
    made.bf16.product = amx_product<ModelTiles>;
    return made;
  }();
  return table;
}

}  // namespace trpo_fast
