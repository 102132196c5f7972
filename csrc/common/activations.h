// The activations the kernels know, each once, for host and device. torch.nn's definitions.
#pragma once

#include <cmath>

#include "common/host_device.h"

namespace trpo_fast {

// The numbers are part of the Python interface: networks/activations.py has the same order.
enum class Activation : int {
  identity = 0,
  tanh = 1,
  relu = 2,
  leaky_relu = 3,  // parameter: negative_slope
  elu = 4,         // parameter: alpha
  silu = 5,
  gelu = 6,       // erf form
  gelu_tanh = 7,  // tanh form
  softplus = 8,   // parameter: beta; linear above beta * x = 20, as torch
  sigmoid = 9,
};
constexpr int kActivationCount = 10;

// Activations whose slope costs nothing to compute from a = phi(z): only a is kept for the backward
// pass.
TRPO_FAST_HOST_DEVICE bool slope_from_output(Activation activation) {
  return activation == Activation::identity || activation == Activation::tanh ||
         activation == Activation::relu;
}

constexpr double kSoftplusThreshold = 20.0;  // torch.nn.Softplus's default
constexpr double kInvSqrt2 = 0.70710678118654752440;
constexpr double kInvSqrt2Pi = 0.39894228040143267794;
constexpr double kGeluTanhScale = 0.79788456080286535588;  // sqrt(2 / pi)
constexpr double kGeluTanhCubic = 0.044715;                // Hendrycks & Gimpel 2016, the tanh form

// a = phi(z) and slope = phi'(z), one element.
template <class T>
struct ActivationValue {
  T value, slope;
};

template <class T>
TRPO_FAST_HOST_DEVICE T sigmoid_of(T z) {
  return T(1) / (T(1) + std::exp(-z));
}

template <class T>
TRPO_FAST_HOST_DEVICE ActivationValue<T> gelu_tanh_of(T z) {
  const T inner = T(kGeluTanhScale) * (z + T(kGeluTanhCubic) * z * z * z);
  const T t = std::tanh(inner);
  const T inner_slope = T(kGeluTanhScale) * (T(1) + T(3 * kGeluTanhCubic) * z * z);
  return {T(0.5) * z * (T(1) + t), T(0.5) * (T(1) + t) + T(0.5) * z * (T(1) - t * t) * inner_slope};
}

template <class T>
TRPO_FAST_HOST_DEVICE ActivationValue<T> softplus_of(T z, T beta) {
  const T scaled = beta * z;
  if (scaled > T(kSoftplusThreshold)) return {z, T(1)};
  return {std::log1p(std::exp(scaled)) / beta, sigmoid_of(scaled)};
}

template <class T>
TRPO_FAST_HOST_DEVICE ActivationValue<T> activate(Activation activation, T z, T parameter) {
  switch (activation) {
    case Activation::identity:
      return {z, T(1)};
    case Activation::tanh: {
      const T a = std::tanh(z);
      return {a, T(1) - a * a};
    }
    case Activation::relu:
      // Written so that NaN passes through.
      return {z <= T(0) ? T(0) : z, z > T(0) ? T(1) : T(0)};
    case Activation::leaky_relu:
      return z > T(0) ? ActivationValue<T>{z, T(1)} : ActivationValue<T>{z * parameter, parameter};
    case Activation::elu:
      return z > T(0) ? ActivationValue<T>{z, T(1)}
                      : ActivationValue<T>{parameter * std::expm1(z), parameter * std::exp(z)};
    case Activation::silu: {
      const T s = sigmoid_of(z);
      return {z * s, s * (T(1) + z * (T(1) - s))};
    }
    case Activation::gelu: {
      const T cdf = T(0.5) * (T(1) + std::erf(z * T(kInvSqrt2)));
      return {z * cdf, cdf + z * T(kInvSqrt2Pi) * std::exp(T(-0.5) * z * z)};
    }
    case Activation::gelu_tanh:
      return gelu_tanh_of(z);
    case Activation::softplus:
      return softplus_of(z, parameter);
    case Activation::sigmoid: {
      const T s = sigmoid_of(z);
      return {s, s * (T(1) - s)};
    }
  }
  return {z, T(1)};
}

}  // namespace trpo_fast
