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

template <class T, int kRows>
void launch_rows(const ProblemArgs<T>& args, int device, void* stream) {
  const OnDevice scope(device);
  const auto kernel = policy_kernel<T, kRows>;
  const int bytes = int(args.plan.shared_bytes);
  check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes),
        "reserving shared memory for the policy update");
  launch_cooperative<T>(kernel, args, stream);
}

}  // namespace trpo_fast::cuda
