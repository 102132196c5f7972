// Starts a cooperative kernel on a stream.
#pragma once

#include "cuda/plan.h"
#include "cuda/runtime.h"

namespace trpo_fast::cuda {

// Lets a kernel have all shared memory of a block. Always the same number: one that followed the
// launch could be lowered by another thread before that launch.
template <class T>
void allow_shared_memory(void (*kernel)(ProblemArgs<T>), int device) {
  const int bytes = attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
  check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes),
        "reserving shared memory for the policy update");
}

template <class T>
void launch_cooperative(void (*kernel)(ProblemArgs<T>), const ProblemArgs<T>& args, int device,
                        void* stream) {
  const OnDevice scope(device);
  allow_shared_memory(kernel, device);
  void* arguments[] = {const_cast<ProblemArgs<T>*>(&args)};
  check(cudaLaunchCooperativeKernel(kernel, dim3(unsigned(args.plan.blocks)), dim3(kThreads),
                                    arguments, args.plan.shared_bytes,
                                    static_cast<cudaStream_t>(stream)),
        "launching the policy update");
}

}  // namespace trpo_fast::cuda
