#include "policy_problem.h"
#include "runtime.h"

namespace trpo_fast::cuda {

DeviceLimits device_limits(int device) {
  if (attribute(cudaDevAttrCooperativeLaunch, device) == 0) {
    throw std::runtime_error("the CUDA device cannot launch cooperative kernels");
  }
  return {attribute(cudaDevAttrMultiProcessorCount, device),
          attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin, device),
          10 * attribute(cudaDevAttrComputeCapabilityMajor, device) +
              attribute(cudaDevAttrComputeCapabilityMinor, device)};
}

}  // namespace trpo_fast::cuda
