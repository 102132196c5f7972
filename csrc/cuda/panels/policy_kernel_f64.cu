#include "cuda/panels/policy_kernel.cuh"

namespace trpo_fast::cuda {

template <>
void launch(const ProblemArgs<double>& args, int device, void* stream) {
  if (args.plan.tiled) return launch_in_tiles(args, device, stream);
  launch_cooperative(policy_kernel<double, kSmallPanelRows, false>, args, device, stream);
}

}  // namespace trpo_fast::cuda
