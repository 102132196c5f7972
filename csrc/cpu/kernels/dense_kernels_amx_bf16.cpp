#include "cpu/kernels/amx.h"
#include "cpu/kernels/amx_product.inl"

namespace trpo_fast {

void amx_bf16_product(const PairProduct& p) {
  amx_product<HardwareTiles>(p);
}

}  // namespace trpo_fast
