// The kernel for networks in panels.
#pragma once

#include "cuda/launch.cuh"
#include "cuda/panels/problem.cuh"
#include "cuda/tasks.cuh"

namespace trpo_fast::cuda {

template <class T, int kRows, bool kTensorCores>
__global__ void __launch_bounds__(kThreads, 1)
    policy_kernel(const __grid_constant__ ProblemArgs<T> a) {
  Problem<T, kRows, kTensorCores> problem(a);
  run_task(problem);
}

template <bool kTensorCores>
void launch_panels(const ProblemArgs<float>& args, int device, void* stream) {
  if (args.plan.panel_rows == kSmallPanelRows) {
    launch_cooperative(policy_kernel<float, kSmallPanelRows, kTensorCores>, args, device, stream);
  } else {
    launch_cooperative(policy_kernel<float, kPanelRows, kTensorCores>, args, device, stream);
  }
}

}  // namespace trpo_fast::cuda
