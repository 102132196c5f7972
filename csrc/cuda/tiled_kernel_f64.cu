#include "tiled_kernel.cuh"

namespace trpo_fast::cuda {

template <>
int tiled_blocks_each<double>(int device, int actions) {
  return blocks_each<double>(device, actions);
}

template <>
void launch_in_tiles(const ProblemArgs<double>& args, int device, void* stream) {
  launch_tiled(args, device, stream);
}

}  // namespace trpo_fast::cuda
