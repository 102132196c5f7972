// CUDA's errors as exceptions, and the current device for a scope.
#pragma once

#include <cuda_runtime.h>

#include <stdexcept>
#include <string>

namespace trpo_fast::cuda {

inline void check(cudaError_t error, const char* what) {
  if (error == cudaSuccess) return;
  cudaGetLastError();  // so that the error is not reported again by a later call
  throw std::runtime_error(
      std::string(what) + " failed: " + cudaGetErrorString(error) +
      ". trpo-fast doctor names driver and device; backend='reference' works without this module.");
}

class OnDevice {
 public:
  explicit OnDevice(int index) {
    check(cudaGetDevice(&before_), "asking for the current CUDA device");
    changed_ = before_ != index;  // choosing a device makes a context there
    if (changed_) check(cudaSetDevice(index), "choosing the CUDA device");
  }
  ~OnDevice() {
    if (changed_) (void)cudaSetDevice(before_);
  }
  OnDevice(const OnDevice&) = delete;
  OnDevice& operator=(const OnDevice&) = delete;

 private:
  int before_ = 0;
  bool changed_ = false;
};

inline int attribute(cudaDeviceAttr which, int device) {
  int value = 0;
  check(cudaDeviceGetAttribute(&value, which, device), "reading the CUDA device's limits");
  return value;
}

}  // namespace trpo_fast::cuda
