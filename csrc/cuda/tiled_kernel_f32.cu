#include "tiled_kernel.cuh"

namespace trpo_fast::cuda {

template <>
int tiled_blocks_each<float>(int device, int actions) {
  return blocks_each<float>(device, actions);
}

template <>
void launch_in_tiles(const ProblemArgs<float>& args, int device, void* stream) {
  launch_tiled(args, device, stream);
}

}  // namespace trpo_fast::cuda
