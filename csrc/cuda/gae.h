// Generalised advantage estimation on the device. Device pointers; everything contiguous.
#pragma once

#include <cstdint>

#include "common/layers.h"

namespace trpo_fast::cuda {

template <class T>
struct GaeArgs {
  const T *rewards, *values;                   // [steps, envs]
  const std::uint8_t *terminated, *truncated;  // [steps, envs]
  const T* last_values;                        // [envs]
  const T* final_values;                       // [steps, envs], read where truncated only; or null
  T *advantages, *returns;                     // [steps, envs]
  Index steps, envs;
  double gamma, gamma_lam;
};

template <class T>
void launch(const GaeArgs<T>& args, int device, void* stream);
template <>
void launch(const GaeArgs<float>& args, int device, void* stream);
template <>
void launch(const GaeArgs<double>& args, int device, void* stream);

}  // namespace trpo_fast::cuda
