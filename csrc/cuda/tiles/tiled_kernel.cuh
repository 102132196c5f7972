// The kernel for wide networks, in tiles.
#pragma once

#include "cuda/launch.cuh"
#include "cuda/tasks.cuh"
#include "cuda/tiles/tiled_problem.cuh"

namespace trpo_fast::cuda {

// Two blocks a multiprocessor hide each other's barriers; sums of doubles need all registers for
// one.
template <class T>
__global__ void __launch_bounds__(kThreads, sizeof(T) == 4 ? 2 : 1)
    tiled_kernel(const __grid_constant__ ProblemArgs<T> a) {
  TiledProblem<T> problem(a);
  run_task(problem);
}

template <class T>
int tiled_blocks_each(int device, int actions) {
  const OnDevice scope(device);
  const std::size_t bytes = tiled_shared_bytes(actions, sizeof(T));
  allow_shared_memory(tiled_kernel<T>, device);
  int blocks = 0;
  check(cudaOccupancyMaxActiveBlocksPerMultiprocessor(&blocks, tiled_kernel<T>, kThreads, bytes),
        "asking how many blocks fit a multiprocessor");
  return blocks;
}

template <class T>
void launch_in_tiles(const ProblemArgs<T>& args, int device, void* stream) {
  launch_cooperative(tiled_kernel<T>, args, device, stream);
}

}  // namespace trpo_fast::cuda
