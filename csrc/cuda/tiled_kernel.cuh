// The kernel for wide networks: one cooperative launch does one task, as policy_kernel does.
#pragma once

#include "launch.cuh"
#include "tiled_problem.cuh"

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
void reserve_tiles(std::size_t bytes) {
  check(cudaFuncSetAttribute(tiled_kernel<T>, cudaFuncAttributeMaxDynamicSharedMemorySize,
                             int(bytes)),
        "reserving shared memory for the update of a wide policy");
}

template <class T>
int tiled_blocks_each(int device, int actions) {
  const OnDevice scope(device);
  const std::size_t bytes = tiled_shared_bytes(actions, sizeof(T));
  reserve_tiles<T>(bytes);
  int blocks = 0;
  check(cudaOccupancyMaxActiveBlocksPerMultiprocessor(&blocks, tiled_kernel<T>, kThreads, bytes),
        "asking how many blocks fit a multiprocessor");
  return blocks;
}

template <class T>
void launch_in_tiles(const ProblemArgs<T>& args, int device, void* stream) {
  const OnDevice scope(device);
  reserve_tiles<T>(args.plan.shared_bytes);
  launch_cooperative(tiled_kernel<T>, args, stream);
}

}  // namespace trpo_fast::cuda
