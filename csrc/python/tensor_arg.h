// How tensors cross from Python: as (address, sizes, strides), in elements.
// trpo_fast/backends/cpu/arguments.py makes these tuples and has checked dtype and device; here
// the number of dimensions and the sizes are checked against what the kernel will read, so that no
// wrong shape can reach it.
#pragma once

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <initializer_list>
#include <string>

#include "common/layers.h"

namespace trpo_fast {

namespace py = pybind11;

class TensorArg {
 public:
  TensorArg(py::handle arg, const char* name, int dimensions)
      : name_(name), dimensions_(dimensions) {
    const auto fields = py::cast<py::tuple>(arg);
    if (fields.size() != 3)
      throw py::type_error(std::string(name) + ": expected (address, sizes, strides)");
    address_ = fields[0].cast<std::uintptr_t>();
    const auto sizes = py::cast<py::tuple>(fields[1]);
    const auto strides = py::cast<py::tuple>(fields[2]);
    if (Index(sizes.size()) != dimensions || sizes.size() != strides.size()) {
      throw py::value_error(std::string(name) + " has " + std::to_string(sizes.size()) +
                            " dimensions, expected " + std::to_string(dimensions));
    }
    for (int d = 0; d < dimensions; ++d) {
      sizes_[d] = sizes[d].cast<Index>();
      strides_[d] = strides[d].cast<Index>();
    }
  }

  Index size(int dimension) const { return sizes_[dimension]; }
  Index stride(int dimension) const { return strides_[dimension]; }

  void require_size(int dimension, Index expected) const {
    if (sizes_[dimension] != expected) {
      throw py::value_error(std::string(name_) + " has size " + std::to_string(sizes_[dimension]) +
                            " in dimension " + std::to_string(dimension) + ", expected " +
                            std::to_string(expected));
    }
  }

  void require_contiguous() const {
    for (int d = 0; d < dimensions_; ++d) {
      if (sizes_[d] == 0) return;  // as torch has it
    }
    Index expected = 1;
    for (int d = dimensions_ - 1; d >= 0; --d) {
      if (sizes_[d] != 1 && strides_[d] != expected) {
        throw py::value_error(std::string(name_) + " must be contiguous");
      }
      expected *= sizes_[d];
    }
  }

  template <class T>
  T* data() const {
    return reinterpret_cast<T*>(address_);
  }

  template <class T>
  MatrixView<T> matrix() const {
    return {data<T>(), sizes_[0], sizes_[1], strides_[0], strides_[1]};
  }

 private:
  const char* name_;
  int dimensions_;
  std::uintptr_t address_ = 0;
  Index sizes_[3] = {}, strides_[3] = {};
};

// Contiguous, of these sizes.
template <class T>
T* contiguous_arg(py::handle arg, const char* name, std::initializer_list<Index> sizes) {
  const TensorArg tensor(arg, name, int(sizes.size()));
  int dimension = 0;
  for (const Index size : sizes) tensor.require_size(dimension++, size);
  tensor.require_contiguous();
  return tensor.data<T>();
}

// The same; null where None.
template <class T>
T* optional_arg(py::handle arg, const char* name, std::initializer_list<Index> sizes) {
  return arg.is_none() ? nullptr : contiguous_arg<T>(arg, name, sizes);
}

template <class T>
struct VectorView {
  T* data;
  Index stride;
};

// [size], any stride; null where None.
template <class T>
VectorView<T> strided_arg(py::handle arg, const char* name, Index size) {
  if (arg.is_none()) return {nullptr, 0};
  const TensorArg vector(arg, name, 1);
  vector.require_size(0, size);
  return {vector.data<T>(), vector.stride(0)};
}

// [(weight, bias or None, activation, parameter), ...] -> layers whose widths fit together.
template <class T>
Layers<T> layers_arg(const py::sequence& arg, Index input_width) {
  Layers<T> layers;
  Index width = input_width;
  for (const py::handle item : arg) {
    const auto fields = py::cast<py::tuple>(item);
    const TensorArg weight(fields[0], "weight", 2);
    weight.require_size(1, width);
    const int activation = fields[2].cast<int>();
    if (activation < 0 || activation >= kActivationCount) {
      throw py::value_error("activation " + std::to_string(activation) +
                            " is not one the native module knows");
    }
    const auto bias = strided_arg<const T>(fields[1], "bias", weight.size(0));
    layers.push_back({weight.data<const T>(), weight.stride(0), weight.stride(1), bias.data,
                      bias.stride, width, weight.size(0), Activation(activation),
                      fields[3].cast<T>()});
    width = weight.size(0);
  }
  if (layers.empty())
    throw py::value_error("layers is empty: a network has at least one Linear layer");
  return layers;
}

}  // namespace trpo_fast
