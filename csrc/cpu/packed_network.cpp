#include "packed_network.h"

#include <algorithm>

namespace trpo_fast {

template <class T>
PackedNetwork<T>::PackedNetwork(const Layers<T>& source, Arena& arena) {
  for (const Layer<T>& layer : source) {
    const Slabs slabs(layer.out);
    layers.push_back({layer.in, layer.out, slabs, arena.take<T>(slabs.size(layer.in)),
                      arena.take<T>(slabs.size(1)), layer.activation, layer.parameter});
  }
}

template <class T>
void PackedNetwork<T>::pack(const Layers<T>& source) {
  for (std::size_t l = 0; l < source.size(); ++l) {
    const Layer<T>& from = source[l];
    PackedLayer<T>& to = layers[l];
    const Index width = to.out_slabs.width;
    std::fill_n(to.bias, to.out_slabs.size(1), T(0));
    if (from.bias != nullptr) {
      for (Index o = 0; o < to.out; ++o) to.bias[o] = from.bias[o * from.bias_stride];
    }
    for (Index slab = 0; slab < to.out_slabs.count; ++slab) {
      T* packed = to.weight + slab * to.in * width;
      const Index first = slab * width;
      const Index columns = std::min(width, to.out - first);
      for (Index i = 0; i < to.in; ++i) {
        const T* column = from.weight + first * from.weight_row_stride + i * from.weight_col_stride;
        for (Index c = 0; c < columns; ++c)
          packed[i * width + c] = column[c * from.weight_row_stride];
        std::fill(packed + i * width + columns, packed + (i + 1) * width, T(0));
      }
    }
  }
}

template <class T>
Index PackedNetwork<T>::widest() const {
  Index widest = 0;
  for (const PackedLayer<T>& layer : layers) widest = std::max(widest, layer.out_slabs.size(1));
  return widest;
}

template struct PackedNetwork<float>;
template struct PackedNetwork<double>;

}  // namespace trpo_fast
