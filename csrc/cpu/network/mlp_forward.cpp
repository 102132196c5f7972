#include "cpu/network/mlp_forward.h"

#include <algorithm>

#include "cpu/kernels/dispatch.h"
#include "cpu/parallel.h"

namespace trpo_fast {
namespace {

constexpr Index kPanelRows = 48;  // a multiple of the kernels' row tiles (6 and 12)

template <class T>
void copy_out(const Panel<T>& panel, Index rows, const MatrixView<T>& out, Index first) {
  for (Index r = 0; r < rows; ++r) {
    T* to = out.data + (first + r) * out.row_stride;
    for (Index f = 0; f < panel.slabs.features; ++f) to[f * out.col_stride] = panel.at(r, f);
  }
}

}  // namespace

template <class T>
MlpForward<T>::MlpForward(const Layers<T>& layers, int threads, Arena&& arena)
    : kernels_(dense_kernels().get<T>()),
      network_(layers, arena),
      panel_size_(network_.widest() * kPanelRows),
      panels_(arena.take<T>(2 * panel_size_ * threads)),
      threads_(threads) {}

template <class T>
MlpForward<T>::MlpForward(const Layers<T>& layers, int threads, void* workspace)
    : MlpForward(layers, threads, Arena(workspace)) {
  network_.pack(layers);
}

template <class T>
std::size_t MlpForward<T>::workspace_bytes(const Layers<T>& layers, int threads) {
  Arena arena(nullptr);
  const MlpForward<T> counted(layers, threads, static_cast<Arena&&>(arena));
  return arena.used();
}

template <class T>
void MlpForward<T>::operator()(const MatrixView<const T>& x, const MatrixView<T>& out) const {
  parallel_for((x.rows + kPanelRows - 1) / kPanelRows, threads_, [&](Index panel, int worker) {
    const Index first = panel * kPanelRows, rows = std::min(kPanelRows, x.rows - first);
    MatrixView<const T> part = x;
    part.data += first * x.row_stride;
    T* const base = panels_ + 2 * panel_size_ * worker;
    T* const panels[2] = {base, base + panel_size_};
    copy_out(forward_panel<T>(kernels_, network_, part, rows, kPanelRows, panels), rows, out,
             first);
  });
}

template class MlpForward<float>;
template class MlpForward<double>;

}  // namespace trpo_fast
