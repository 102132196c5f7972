#include "cuda/plan.h"
#include "cuda/runtime.h"

namespace trpo_fast::cuda {
namespace {

// Compiled for the same devices as the others.
__global__ void any_kernel() {}

}  // namespace

DeviceLimits device_limits(int device) {
  if (attribute(cudaDevAttrCooperativeLaunch, device) == 0) {
    throw std::runtime_error("the CUDA device cannot launch cooperative kernels");
  }
  return {attribute(cudaDevAttrMultiProcessorCount, device),
          attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin, device),
          10 * attribute(cudaDevAttrComputeCapabilityMajor, device) +
              attribute(cudaDevAttrComputeCapabilityMinor, device)};
}

std::string device_error(int device) {
  try {
    const OnDevice scope(device);
    cudaFuncAttributes found;
    const cudaError_t error = cudaFuncGetAttributes(&found, any_kernel);
    if (error != cudaSuccess) {
      cudaGetLastError();
      return std::string("its kernels do not load there: ") + cudaGetErrorString(error);
    }
    (void)device_limits(device);
  } catch (const std::runtime_error& refused) {
    return refused.what();
  }
  return {};
}

}  // namespace trpo_fast::cuda
