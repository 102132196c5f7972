#include "cpu/preconditioner/spd_inverse.h"

#include <algorithm>
#include <vector>

#include "cpu/kernels/dispatch.h"
#include "cpu/kernels/panels.h"
#include "cpu/parallel.h"

namespace trpo_fast {
namespace {

// A + damping I in slabs; the padding of the last is zero.
template <class T>
void fill(const T* matrix, Index n, double damping, const Slabs& slabs, T* to) {
  for (Index slab = 0; slab < slabs.count; ++slab) {
    const Index first = slab * slabs.width, columns = std::min(slabs.width, n - first);
    for (Index i = 0; i < n; ++i, to += slabs.width) {
      std::copy_n(matrix + i * n + first, columns, to);
      std::fill(to + columns, to + slabs.width, T(0));
      if (i >= first && i < first + columns) to[i - first] = T(double(to[i - first]) + damping);
    }
  }
}

// block [size, width] -> its inverse, in place.
template <class T>
bool invert_block(const Kernels<T>& kernels, T* block, Index size, Index width) {
  for (Index k = 0; k < size; ++k) {
    T* const pivot_row = block + k * width;
    const T pivot = pivot_row[k];
    if (!(pivot > T(0))) return false;
    pivot_row[k] = T(1);
    for (Index j = 0; j < size; ++j) pivot_row[j] /= pivot;
    for (Index i = 0; i < size; ++i) {
      if (i == k) continue;
      T* const row = block + i * width;
      const T factor = row[k];
      row[k] = T(0);
      kernels.add_scaled(-factor, pivot_row, row, size);
    }
  }
  return true;
}

// to [columns, rows] = from' of [rows, columns], both with rows of `width`.
template <class T>
void transpose(const T* from, Index rows, Index columns, Index width, T* to) {
  for (Index r = 0; r < rows; ++r) {
    for (Index c = 0; c < columns; ++c) to[c * width + r] = from[r * width + c];
  }
}

// Sweeps a symmetric matrix block by block: A_kk -> -A_kk^-1, A_ik -> A_ik A_kk^-1, A_ij -> A_ij -
// A_ik A_kk^-1 A_kj, after which it is -A^-1. Of each slab of columns only the rows from the
// diagonal's block on are kept.
template <class T>
struct Sweep {
  const Kernels<T>& kernels;
  Index n;
  Slabs slabs;
  T* matrix;              // in slabs
  std::vector<T> pivot;   // -A_kk^-1, [width, width]
  std::vector<T> column;  // A_ik for all i, [n, width]
  std::vector<T> scaled;  // -A_ik A_kk^-1, [n, width]
  std::vector<T> turned;  // [threads][width, width]

  Sweep(const Kernels<T>& kernels_, Index n_, T* matrix_, int threads)
      : kernels(kernels_), n(n_), slabs(n_), matrix(matrix_) {
    const auto block = std::size_t(slabs.width * slabs.width);
    pivot.resize(block);
    column.resize(std::size_t(n * slabs.width));
    scaled.resize(column.size());
    turned.resize(block * std::size_t(threads));
  }

  Index first(Index s) const { return s * slabs.width; }
  Index size(Index s) const { return std::min(slabs.width, n - first(s)); }
  // Block row r of slab s.
  T* block(Index r, Index s) const { return matrix + (s * n + first(r)) * slabs.width; }
  T* rows(std::vector<T>& of, Index r) { return of.data() + first(r) * slabs.width; }

  // left [M, K] right [K, columns] into or onto C.
  void multiply(const T* left, Index M, const T* right, Index K, Index columns, T* C,
                Finish finish) const {
    Slabs one = slabs;
    one.features = columns;
    one.count = 1;
    Product<T> p = into<T>({C, one, M}, M, nullptr);
    p.finish = finish;
    add_term<T>(p, {left, slabs.width, kNoBlock, 0, 1, kNoBlock, 0}, {right, slabs.width, 0}, K);
    kernels.product(p);
  }

  bool take_pivot(Index k) {
    const Index width = slabs.width, count = size(k);
    for (Index r = 0; r < k; ++r) transpose(block(k, r), count, size(r), width, rows(column, r));
    std::copy_n(block(k, k), (n - first(k)) * width, rows(column, k));
    std::copy_n(block(k, k), count * width, pivot.data());
    if (!invert_block(kernels, pivot.data(), count, width)) return false;
    for (T& x : pivot) x = -x;
    multiply(column.data(), n, pivot.data(), count, count, scaled.data(), Finish::store);
    return true;
  }

  void update(Index k, Index s, int worker) {
    const Index width = slabs.width;
    if (s == k) {
      std::copy_n(pivot.data(), size(k) * width, block(k, k));
      const T* const from = rows(scaled, k) + size(k) * width;
      T* const to = block(k, k) + size(k) * width;
      for (Index i = 0; i < (n - first(k) - size(k)) * width; ++i) to[i] = -from[i];
      return;
    }
    T* const own = turned.data() + worker * width * width;
    transpose(rows(column, s), size(s), size(k), width, own);
    multiply(rows(scaled, s), n - first(s), own, size(k), size(s), block(s, s), Finish::accumulate);
    if (s > k) return;
    // The pivot's rows in an earlier slab are not part of that update.
    T* const pivot_rows = block(k, s);
    transpose(rows(scaled, s), size(s), size(k), width, pivot_rows);
    for (Index i = 0; i < size(k) * width; ++i) pivot_rows[i] = -pivot_rows[i];
  }

  // The inverse, with zeros for padding, then mirrored above the diagonal.
  void finish(Index s) const {
    T* row = block(s, s);
    for (Index i = first(s); i < n; ++i, row += slabs.width) {
      for (Index c = 0; c < slabs.width; ++c) row[c] = c < size(s) ? -row[c] : T(0);
    }
  }
  void mirror(Index s) const {
    for (Index r = 0; r < s; ++r)
      transpose(block(s, r), size(s), size(r), slabs.width, block(r, s));
  }
};

}  // namespace

template <class T>
bool damped_inverse(const T* matrix, Index n, double damping, T* to, int threads) {
  Sweep<T> sweep(dense_kernels().get<T>(), n, to, threads);
  const Index slabs = sweep.slabs.count;
  fill(matrix, n, damping, sweep.slabs, to);
  for (Index k = 0; k < slabs; ++k) {
    if (!sweep.take_pivot(k)) return false;
    parallel_for(slabs, threads, [&](Index s, int worker) { sweep.update(k, s, worker); });
  }
  parallel_for(slabs, threads, [&](Index s, int) { sweep.finish(s); });
  parallel_for(slabs, threads, [&](Index s, int) { sweep.mirror(s); });
  return true;
}

template bool damped_inverse<float>(const float*, Index, double, float*, int);
template bool damped_inverse<double>(const double*, Index, double, double*, int);

}  // namespace trpo_fast
