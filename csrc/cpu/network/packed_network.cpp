#include "cpu/network/packed_network.h"

#include <algorithm>

#include "cpu/parallel.h"

namespace trpo_fast {

template <class T>
PackedNetwork<T>::PackedNetwork(const Layers<T>& source, Arena& arena) {
  for (const Layer<T>& layer : source) {
    const Slabs slabs(layer.out);
    layers.push_back({layer.in, layer.out, slabs, arena.take<T>(slabs.size(layer.in)),
                      arena.take<T>(slabs.size(1)), layer.activation, layer.parameter});
  }
}

namespace {

// to[i, c] = from[c, i] for one slab of columns c; in tiles, so that both sides stay in cache.
template <class T>
void pack_slab(const Layer<T>& from, Index first, Index columns, Index width, T* to) {
  constexpr Index kTile = 16;
  for (Index start = 0; start < from.in; start += kTile) {
    const Index stop = std::min(start + kTile, from.in);
    for (Index c = 0; c < columns; ++c) {
      const T* row = from.weight + (first + c) * from.weight_row_stride;
      for (Index i = start; i < stop; ++i) to[i * width + c] = row[i * from.weight_col_stride];
    }
  }
  for (Index i = 0; i < from.in && columns < width; ++i) {
    std::fill(to + i * width + columns, to + (i + 1) * width, T(0));
  }
}

}  // namespace

template <class T>
void PackedNetwork<T>::pack(const Layers<T>& source, int threads) {
  for (std::size_t l = 0; l < source.size(); ++l) {
    const Layer<T>& from = source[l];
    PackedLayer<T>& to = layers[l];
    std::fill_n(to.bias, to.out_slabs.size(1), T(0));
    for (Index o = 0; o < to.out && from.bias != nullptr; ++o) {
      to.bias[o] = from.bias[o * from.bias_stride];
    }
    const Index width = to.out_slabs.width;
    if (from.weight == nullptr) std::fill_n(to.weight, to.out_slabs.size(to.in), T(0));
    if (from.weight == nullptr) continue;
    const int wanted = to.out_slabs.count > kOwnSlabs ? threads : 1;
    parallel_for(to.out_slabs.count, wanted, [&](Index slab, int) {
      const Index first = slab * width;
      pack_slab(from, first, std::min(width, to.out - first), width,
                to.weight + slab * to.in * width);
    });
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
