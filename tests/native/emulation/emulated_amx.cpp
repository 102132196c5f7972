// The kernel of amx_product.inl on the model of its tiles, compiled for any CPU.
#include "amx_model.h"
#include "cpu/kernels/amx_product.inl"
#include "cpu/kernels/dispatch.h"
#include "emulated_kernels.h"

namespace trpo_fast {

const KernelTable& emulated_amx() {
  static const KernelTable table = [] {
    KernelTable made = dense_kernels_baseline();
    made.isa = "emulated_amx";
    made.bf16.product = amx_product<ModelTiles>;
    return made;
  }();
  return table;
}

std::vector<const KernelTable*> emulated_kernels() {
  std::vector<const KernelTable*> tables{&emulated_amx()};
#if defined(TRPO_FAST_EMULATED_AMX_AVX512)
  if (__builtin_cpu_supports("avx512bf16")) tables.push_back(&emulated_amx_avx512());
#endif
  return tables;
}

}  // namespace trpo_fast
