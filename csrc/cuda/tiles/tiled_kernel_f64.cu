#include "cuda/tiles/tiled_kernel.cuh"

namespace trpo_fast::cuda {

template int tiled_blocks_each<double>(int, int);
template void launch_in_tiles(const ProblemArgs<double>&, int, void*);

}  // namespace trpo_fast::cuda
