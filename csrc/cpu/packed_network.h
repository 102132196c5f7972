// The weights of a network in the layout the kernels read, copied from wherever torch keeps them.
#pragma once

#include "panels.h"

namespace trpo_fast {

// Hands out aligned pieces of one block of memory; with a null base it only counts.
class Arena {
 public:
  explicit Arena(void* base) : base_(static_cast<char*>(base)) {}

  template <class T>
  T* take(Index count) {
    const std::size_t at = used_;
    used_ +=
        (static_cast<std::size_t>(count) * sizeof(T) + kAlignment - 1) / kAlignment * kAlignment;
    return base_ ? reinterpret_cast<T*>(base_ + at) : nullptr;
  }
  std::size_t used() const { return used_; }

 private:
  char* base_;
  std::size_t used_ = 0;
};

template <class T>
struct PackedLayer {
  Index in, out;
  Slabs out_slabs;
  T* weight;  // slabs over out: [slab][in][width], zero where padded
  T* bias;    // [out padded], zero where padded or absent
  Activation activation;
  T parameter;
};

template <class T>
struct PackedNetwork {
  std::vector<PackedLayer<T>> layers;

  // Takes the memory from the arena; the contents are undefined until pack().
  PackedNetwork(const Layers<T>& layers, Arena& arena);
  // A layer whose weight is null is packed as zeros.
  void pack(const Layers<T>& layers);
  // Elements of the widest matrix of one row, input excluded.
  Index widest() const;
};

// a = phi(z) in place for the first rows of a panel and, where slope is not null, phi'(z) in a
// panel like it.
template <class T>
void activate_rows(const Kernels<T>& kernels, const PackedLayer<T>& layer, const Panel<T>& z,
                   Index rows, T* slope) {
  if (layer.activation == Activation::identity && slope == nullptr) return;
  for (Index slab = 0; slab < z.slabs.count; ++slab) {
    const Index at = slab * z.slab_stride();
    kernels.activate(layer.activation, layer.parameter, z.data + at, slope ? slope + at : nullptr,
                     rows * z.slabs.width);
  }
}

}  // namespace trpo_fast
