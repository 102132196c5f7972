#include "cuda/panels/policy_kernel.cuh"

namespace trpo_fast::cuda {

template <>
void launch(const ProblemArgs<float>& args, int device, void* stream) {
  if (args.plan.tiled) return launch_in_tiles(args, device, stream);
  if (args.products != Products::exact) return launch_tensor_cores(args, device, stream);
  launch_panels<false>(args, device, stream);
}

}  // namespace trpo_fast::cuda
