// Starts a cooperative kernel on a stream.
#pragma once

#include "policy_kernel.cuh"
#include "runtime.h"

namespace trpo_fast::cuda {

template <class T>
void launch_cooperative(void (*kernel)(ProblemArgs<T>), const ProblemArgs<T>& args, void* stream) {
  void* arguments[] = {const_cast<ProblemArgs<T>*>(&args)};
  check(cudaLaunchCooperativeKernel(kernel, dim3(unsigned(args.plan.blocks)), dim3(kThreads),
                                    arguments, args.plan.shared_bytes,
                                    static_cast<cudaStream_t>(stream)),
        "launching the policy update");
}

template <class T, int kRows, bool kTensorCores = false>
void launch_rows(const ProblemArgs<T>& args, int device, void* stream) {
  const OnDevice scope(device);
  const auto kernel = policy_kernel<T, kRows, kTensorCores>;
  const int bytes = int(args.plan.shared_bytes);
  check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes),
        "reserving shared memory for the policy update");
  launch_cooperative<T>(kernel, args, stream);
}

template <bool kTensorCores>
void launch_panels(const ProblemArgs<float>& args, int device, void* stream) {
  if (args.plan.panel_rows == kSmallPanelRows) {
    launch_rows<float, kSmallPanelRows, kTensorCores>(args, device, stream);
  } else {
    launch_rows<float, kPanelRows, kTensorCores>(args, device, stream);
  }
}

}  // namespace trpo_fast::cuda
