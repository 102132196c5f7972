// A thread an environment, from the last step to the first (Schulman et al. 2016, equation 16).
// Each row is read as the warp's neighbours lie in memory; rows ahead are loaded before the
// recursion needs them, since only the running advantage is a chain.
#include "cuda/gae.h"

#include "cuda/runtime.h"

namespace trpo_fast::cuda {
namespace {

constexpr int kEnvsPerBlock = 64;
constexpr int kAhead = 8;

template <class T>
__global__ void __launch_bounds__(kEnvsPerBlock) gae_kernel(const __grid_constant__ GaeArgs<T> a) {
  const Index env = Index(blockIdx.x) * kEnvsPerBlock + threadIdx.x;
  if (env >= a.envs) return;
  double running = 0;
  T after = a.last_values[env];
  for (Index top = a.steps; top > 0; top -= kAhead) {
    T rewards[kAhead], values[kAhead], finals[kAhead];
    bool ended[kAhead], cut[kAhead];
#pragma unroll
    for (int k = 0; k < kAhead; ++k) {
      const Index t = top - 1 - k;
      if (t < 0) continue;
      const Index at = t * a.envs + env;
      rewards[k] = a.rewards[at];
      values[k] = a.values[at];
      ended[k] = a.terminated[at] != 0;
      cut[k] = a.truncated[at] != 0;
      finals[k] = a.final_values != nullptr ? a.final_values[at] : T(0);
    }
#pragma unroll
    for (int k = 0; k < kAhead; ++k) {
      const Index t = top - 1 - k;
      if (t < 0) continue;
      const double bootstrap = cut[k] ? finals[k] : after;
      // Selects, because 0 * NaN is NaN.
      const double next_value = ended[k] ? 0.0 : bootstrap;
      const double tail = ended[k] || cut[k] ? 0.0 : a.gamma_lam * running;
      // delta = r + gamma next_value - v; adv = delta + gamma lam adv_next
      running = double(rewards[k]) + a.gamma * next_value - double(values[k]) + tail;
      after = values[k];
      const T advantage = T(running);
      a.advantages[t * a.envs + env] = advantage;
      a.returns[t * a.envs + env] = advantage + values[k];
    }
  }
}

template <class T>
void launch_gae(const GaeArgs<T>& args, int device, void* stream) {
  const OnDevice scope(device);
  const auto blocks = unsigned((args.envs + kEnvsPerBlock - 1) / kEnvsPerBlock);
  void* arguments[] = {const_cast<GaeArgs<T>*>(&args)};
  check(cudaLaunchKernel(gae_kernel<T>, dim3(blocks), dim3(kEnvsPerBlock), arguments, 0,
                         static_cast<cudaStream_t>(stream)),
        "launching the advantage estimation");
}

}  // namespace

template <>
void launch(const GaeArgs<float>& args, int device, void* stream) {
  launch_gae(args, device, stream);
}

template <>
void launch(const GaeArgs<double>& args, int device, void* stream) {
  launch_gae(args, device, stream);
}

}  // namespace trpo_fast::cuda
