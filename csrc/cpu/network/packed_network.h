// The weights of a network in the layout the kernels read, copied from wherever torch keeps them.
#pragma once

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#endif

#include "cpu/kernels/panels.h"

namespace trpo_fast {

// Slabs of a layer that one thread copies alone: waking another costs more.
constexpr Index kOwnSlabs = 2;

// Hands out aligned pieces of one block of memory; with a null base it only counts. Under
// AddressSanitizer a poisoned gap follows each piece, so that running over one is seen.
class Arena {
 public:
  explicit Arena(void* base) : base_(static_cast<char*>(base)) {}

  template <class T>
  T* take(Index count) {
    const std::size_t at = used_;
    const Index bytes = count * Index(sizeof(T));
    used_ += static_cast<std::size_t>(round_up(bytes, kAlignment)) + kGap;
#if defined(__SANITIZE_ADDRESS__)
    if (base_) __asan_poison_memory_region(base_ + used_ - kGap, kGap);
#endif
    return base_ ? reinterpret_cast<T*>(base_ + at) : nullptr;
  }
  std::size_t used() const { return used_; }

#if defined(__SANITIZE_ADDRESS__)
  // Before the block goes back to its allocator.
  static void release(void* base, std::size_t bytes) { __asan_unpoison_memory_region(base, bytes); }
#else
  static void release(void*, std::size_t) {}
#endif

 private:
#if defined(__SANITIZE_ADDRESS__)
  static constexpr std::size_t kGap = kAlignment;
#else
  static constexpr std::size_t kGap = 0;
#endif
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
  void pack(const Layers<T>& layers, int threads = 1);
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
