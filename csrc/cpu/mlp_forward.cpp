#include "mlp_forward.h"

#include <algorithm>

#include "dispatch.h"
#include "panels.h"

namespace trpo_fast {
namespace {

constexpr Index kPanelRows = 48;  // a multiple of the kernels' row tiles (6 and 12)

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
void copy_out(const Panel<T>& panel, Index rows, const MatrixView<T>& out, Index first) {
  for (Index r = 0; r < rows; ++r) {
    T* to = out.data + (first + r) * out.row_stride;
    for (Index f = 0; f < panel.slabs.features; ++f) to[f * out.col_stride] = panel.at(r, f);
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
    MatrixView<const T> x = args.x;
    x.data += first * x.row_stride;
    const Panel<T> z =
        forward_panel<T>(kernels, workspace.network, x, rows, kPanelRows, workspace.panels);
    copy_out(z, rows, args.out, first);
  }
}

template std::size_t mlp_forward_workspace(const Layers<float>&);
template std::size_t mlp_forward_workspace(const Layers<double>&);
template void mlp_forward(const MlpForwardArgs<float>&);
template void mlp_forward(const MlpForwardArgs<double>&);

}  // namespace trpo_fast
