#include "mlp_forward.h"

#include <algorithm>
#include <limits>

#include "dispatch.h"

namespace trpo_fast {
namespace {

constexpr Index kPanelRows = 48;  // a multiple of the kernels' row tiles (6 and 12)
constexpr Index kNoBlock = std::numeric_limits<Index>::max();

// The packed weights and two panels that the layers write in turn.
template <class T>
struct Workspace {
  PackedNetwork<T> network;
  T* panels[2];

  Workspace(const Layers<T>& layers, Arena& arena) : network(layers, arena) {
    for (T*& panel : panels) panel = arena.take<T>(network.widest() * kPanelRows);
  }
};

template <class T>
LeftOperand<T> rows_of(const MatrixView<const T>& x, Index first) {
  return {x.data + first * x.row_stride, x.row_stride, kNoBlock, 0, x.col_stride, kNoBlock, 0};
}

template <class T>
LeftOperand<T> rows_of(const T* panel, const Slabs& slabs) {
  return {panel, slabs.width, kNoBlock, 0, 1, slabs.width, slabs.width * kPanelRows};
}

template <class T>
void copy_out(const T* panel, const Slabs& slabs, Index rows, const MatrixView<T>& out,
              Index first) {
  for (Index r = 0; r < rows; ++r) {
    T* to = out.data + (first + r) * out.row_stride;
    for (Index f = 0; f < slabs.features; ++f) {
      to[f * out.col_stride] =
          panel[(f / slabs.width * kPanelRows + r) * slabs.width + f % slabs.width];
    }
  }
}

}  // namespace

template <class T>
std::size_t mlp_forward_workspace(const Layers<T>& layers) {
  Arena arena(nullptr);
  Workspace<T> counted(layers, arena);
  return arena.used();
}

template <class T>
void mlp_forward(const MlpForwardArgs<T>& args) {
  const Kernels<T>& kernels = dense_kernels().get<T>();
  Arena arena(args.workspace);
  Workspace<T> workspace(args.layers, arena);
  workspace.network.pack(args.layers);
  for (Index first = 0; first < args.x.rows; first += kPanelRows) {
    const Index rows = std::min(kPanelRows, args.x.rows - first);
    LeftOperand<T> input = rows_of(args.x, first);
    int target = 0;
    for (const PackedLayer<T>& layer : workspace.network.layers) {
      const Slabs& slabs = layer.out_slabs;
      T* z = workspace.panels[target];
      Product<T> p{rows,          slabs,  {},          1,
                   layer.bias,    z,      slabs.width, slabs.width * kPanelRows,
                   Finish::store, nullptr};
      p.terms[0] = {input, {layer.weight, slabs.width, slabs.width * layer.in}, layer.in};
      kernels.product(p);
      for (Index slab = 0; slab < slabs.count; ++slab) {
        kernels.activate(layer.activation, layer.parameter, z + slab * slabs.width * kPanelRows,
                         nullptr, rows * slabs.width);
      }
      input = rows_of<T>(z, slabs);
      target = 1 - target;
    }
    copy_out(workspace.panels[1 - target], workspace.network.layers.back().out_slabs, rows,
             args.out, first);
  }
}

template std::size_t mlp_forward_workspace(const Layers<float>&);
template std::size_t mlp_forward_workspace(const Layers<double>&);
template void mlp_forward(const MlpForwardArgs<float>&);
template void mlp_forward(const MlpForwardArgs<double>&);

}  // namespace trpo_fast
