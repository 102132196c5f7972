// The part of CUDA that csrc/cuda uses, on the host: kernels run as ordinary C++, so that they can
// be checked where there is no GPU, and under AddressSanitizer.
//
// Every thread of every block is a fiber; one host thread runs them in turns, each up to its next
// barrier. The order of the turns can be reversed or shuffled (`set_order`): code whose result
// depends on it has a race. A barrier that not all threads reach ends the program with a message.
// Warp-wide operations expect all 32 lanes. What this cannot show: speed, the memory model's weaker
// orders, and the hardware's limits.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <functional>
#include <utility>

#define TRPO_FAST_EMULATION 1
#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __noinline__
#define __grid_constant__
#define __launch_bounds__(...)

struct dim3 {
  unsigned x, y, z;
  dim3(unsigned x_ = 1, unsigned y_ = 1, unsigned z_ = 1) : x(x_), y(y_), z(z_) {}
};
extern dim3 threadIdx, blockIdx, blockDim, gridDim;

namespace emulation {
enum class Scope { warp, block, grid };
void barrier(Scope scope);
// A slot of 64 bytes of the running thread's warp, by lane.
unsigned char* warp_slot(int lane);
void* dynamic_shared();
// 0: as numbered; 1: reversed; others: shuffled anew at every turn, from that seed.
void set_order(unsigned order);
int run(const std::function<void()>& kernel, dim3 grid, dim3 block, std::size_t shared_bytes);

template <class T>
T shuffle(T value, int from) {
  static_assert(sizeof(T) <= 64, "a lane's slot");
  std::memcpy(warp_slot(int(threadIdx.x % 32)), &value, sizeof(T));
  barrier(Scope::warp);
  T found;
  std::memcpy(&found, warp_slot(from), sizeof(T));
  barrier(Scope::warp);
  return found;
}

// Tensor cores on words of 32 bits, as csrc/cuda/tensor_cores.cuh describes them.
std::uint32_t tf32_word(float value);
std::uint32_t bf16_pair(float low, float high);
// sums += A B of a warp: mma.m16n8k16 on bfloat16 or mma.m16n8k8 on tf32.
void multiply_add(bool bf16, float (&sums)[4], const std::uint32_t (&a)[4],
                  const std::uint32_t (&b)[2]);
}  // namespace emulation

inline void __syncthreads() {
  emulation::barrier(emulation::Scope::block);
}
inline void __syncwarp(unsigned = 0xffffffffu) {
  emulation::barrier(emulation::Scope::warp);
}
inline void __threadfence() {}
template <class T>
T __shfl_xor_sync(unsigned, T value, int mask) {
  return emulation::shuffle(value, int(threadIdx.x % 32) ^ mask);
}

using cudaError_t = int;
using cudaStream_t = struct CUstream_st*;
constexpr cudaError_t cudaSuccess = 0, cudaErrorInvalidValue = 1, cudaErrorMemoryAllocation = 2;
enum cudaDeviceAttr {
  cudaDevAttrMaxSharedMemoryPerBlockOptin,
  cudaDevAttrMultiProcessorCount,
  cudaDevAttrCooperativeLaunch,
  cudaDevAttrComputeCapabilityMajor,
  cudaDevAttrComputeCapabilityMinor,
};
enum cudaFuncAttribute { cudaFuncAttributeMaxDynamicSharedMemorySize };

// The device that is imitated; tests change it.
namespace emulation {
struct Device {
  int multiprocessors = 3, blocks_each = 1, shared_bytes = 160 << 10, major = 9, minor = 0;
  cudaError_t launch_error = cudaSuccess;  // what the next launch reports
};
Device& device();
}  // namespace emulation

const char* cudaGetErrorString(cudaError_t error);
inline cudaError_t cudaGetLastError() {
  return cudaSuccess;
}
cudaError_t cudaGetDeviceCount(int* count);
cudaError_t cudaGetDevice(int* index);
cudaError_t cudaSetDevice(int index);
cudaError_t cudaDriverGetVersion(int* version);
cudaError_t cudaRuntimeGetVersion(int* version);
cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int index);

template <class Kernel>
cudaError_t cudaFuncSetAttribute(Kernel*, cudaFuncAttribute, int bytes) {
  return bytes <= emulation::device().shared_bytes ? cudaSuccess : cudaErrorInvalidValue;
}
struct cudaFuncAttributes {};
template <class Kernel>
cudaError_t cudaFuncGetAttributes(cudaFuncAttributes*, Kernel*) {
  return std::exchange(emulation::device().launch_error, cudaSuccess);
}
template <class Kernel>
cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessor(int* blocks, Kernel*, int, std::size_t) {
  *blocks = emulation::device().blocks_each;
  return cudaSuccess;
}
// Kernels here take one argument, their parameters.
template <class Argument>
cudaError_t cudaLaunchKernel(void (*kernel)(Argument), dim3 grid, dim3 block, void** arguments,
                             std::size_t shared_bytes, cudaStream_t) {
  const Argument& argument = *static_cast<const Argument*>(arguments[0]);
  return emulation::run([&] { kernel(argument); }, grid, block, shared_bytes);
}
template <class Argument>
cudaError_t cudaLaunchCooperativeKernel(void (*kernel)(Argument), dim3 grid, dim3 block,
                                        void** arguments, std::size_t shared_bytes,
                                        cudaStream_t stream) {
  const emulation::Device& device = emulation::device();
  if (int(grid.x) > device.multiprocessors * device.blocks_each) return cudaErrorInvalidValue;
  return cudaLaunchKernel(kernel, grid, block, arguments, shared_bytes, stream);
}
