#include "cuda/tiles/tiled_kernel.cuh"

namespace trpo_fast::cuda {

template int tiled_blocks_each<float>(int, int);
template void launch_in_tiles(const ProblemArgs<float>&, int, void*);

}  // namespace trpo_fast::cuda
