#include "cuda/panels/policy_kernel.cuh"

namespace trpo_fast::cuda {

void launch_tensor_cores(const ProblemArgs<float>& args, int device, void* stream) {
  launch_panels<true>(args, device, stream);
}

}  // namespace trpo_fast::cuda
