#include "amx.h"
#include "amx_product.inl"

namespace trpo_fast {

void amx_bf16_product(const PairProduct& p) {
  amx_product<HardwareTiles>(p);
}

}  // namespace trpo_fast
