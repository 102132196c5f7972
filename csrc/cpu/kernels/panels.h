// Left and right operands of the kernels' products over a panel: some rows of a matrix in slabs.
#pragma once

#include <limits>

#include "cpu/kernels/dense_kernels.h"

namespace trpo_fast {

constexpr Index kNoBlock = std::numeric_limits<Index>::max();

// A matrix in slabs with room for panel_rows rows.
template <class T>
struct Panel {
  T* data;
  Slabs slabs;
  Index panel_rows;

  Index slab_stride() const { return slabs.width * panel_rows; }
  T* row(Index r) const { return data + r * slabs.width; }  // of the first slab
  // A row as contiguous features: in place where one slab holds it, else copied to `buffer`.
  T* contiguous(Index r, T* buffer) const {
    if (slabs.count == 1) return row(r);
    for (Index f = 0; f < slabs.features; ++f) buffer[f] = at(r, f);
    return buffer;
  }
  void put_back(Index r, const T* contiguous_row) const {
    if (slabs.count == 1) return;
    for (Index f = 0; f < slabs.features; ++f) at(r, f) = contiguous_row[f];
  }
  T& at(Index r, Index f) const {
    return data[f / slabs.width * slab_stride() + r * slabs.width + f % slabs.width];
  }
};

// element (m, k) = row m, feature k
template <class T>
LeftOperand<T> rows_of(const Panel<T>& a) {
  return {a.data, a.slabs.width, kNoBlock, 0, 1, a.slabs.width, a.slab_stride()};
}
template <class T>
LeftOperand<T> rows_of(const MatrixView<const T>& x) {
  return {x.data, x.row_stride, kNoBlock, 0, x.col_stride, kNoBlock, 0};
}

// element (m, k) = row k, feature m
template <class T>
LeftOperand<T> features_of(const Panel<T>& a) {
  return {a.data, 1, a.slabs.width, a.slab_stride(), a.slabs.width, kNoBlock, 0};
}
template <class T>
LeftOperand<T> features_of(const MatrixView<const T>& x) {
  return {x.data, x.col_stride, kNoBlock, 0, x.row_stride, kNoBlock, 0};
}

// element (k, n) = row k, feature n
template <class T>
RightOperand<T> columns_of(const Panel<T>& a) {
  return {a.data, a.slabs.width, a.slab_stride()};
}

// element (k, n) of a matrix of K rows in slabs without spare rows (packed weights, gradients)
template <class T>
RightOperand<T> packed(const T* data, const Slabs& slabs, Index K) {
  return {data, slabs.width, slabs.width * K};
}

// A product that writes a panel.
template <class T>
Product<T> into(const Panel<T>& c, Index rows, const T* bias) {
  Product<T> p{rows, c.slabs};
  p.bias = bias;
  p.C = c.data;
  p.c_stride = c.slabs.width;
  p.c_slab_stride = c.slab_stride();
  return p;
}

// Adds to C [N slabs][M][width]; `first`: sets it.
template <class T>
Product<T> sum_into(T* C, Index M, const Slabs& N, bool first) {
  Product<T> p{M, N};
  p.C = C;
  p.c_stride = N.width;
  p.c_slab_stride = N.width * M;
  p.finish = first ? Finish::store : Finish::accumulate;
  return p;
}

template <class T>
void add_term(Product<T>& p, const LeftOperand<T>& left, const RightOperand<T>& right, Index K) {
  p.terms[p.term_count++] = {left, right, K};
}

}  // namespace trpo_fast
