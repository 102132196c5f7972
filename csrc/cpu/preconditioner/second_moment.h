// x'x over the rows of a matrix in slabs: what K-FAC's factors are, one slab of columns a task.
#pragma once

#include <algorithm>

#include "cpu/kernels/panels.h"

namespace trpo_fast {

// Rows that are added up before the sums go back to memory: a slab of them fits in L2.
constexpr Index kMomentRows = 512;

// The columns of one slab of x'x, down to the diagonal.
struct MomentColumns {
  Index begin, end;
  Slabs slabs;  // of these columns alone

  MomentColumns(const Slabs& all, Index features, Index slab)
      : begin(slab * all.width), end(std::min(begin + all.width, features)), slabs(all) {
    slabs.features = end - begin;
    slabs.count = 1;
  }
};

// Those columns and their mirror image, of sums [end][width], go to a matrix [features, features].
template <class T>
void put_moment(const MomentColumns& columns, const T* sums, double weight_sum, Index features,
                T* to) {
  for (Index i = 0; i < columns.end; ++i) {
    for (Index j = std::max(i, columns.begin); j < columns.end; ++j) {
      const T value = T(double(sums[i * columns.slabs.width + j - columns.begin]) / weight_sum);
      to[i * features + j] = to[j * features + i] = value;
    }
  }
}

// sums [columns.end][width] = the columns of one slab of x'x.
template <class T>
void moment_sums(const Kernels<T>& kernels, const Panel<T>& x, Index rows,
                 const MomentColumns& columns, T* sums) {
  const Index width = x.slabs.width;
  for (Index row = 0; row < rows; row += kMomentRows) {
    const Panel<T> block{x.row(row), x.slabs, x.panel_rows};
    RightOperand<T> right = columns_of(block);
    right.data += columns.begin / width * right.slab_stride;
    Product<T> p = sum_into(sums, columns.end, columns.slabs, row == 0);
    add_term<T>(p, features_of(block), right, std::min(kMomentRows, rows - row));
    kernels.product(p);
  }
}

// to = x'x / weight_sum, the part of one slab; sums: memory of [features][width].
template <class T>
void second_moment(const Kernels<T>& kernels, const Panel<T>& x, Index rows, Index features,
                   Index slab, double weight_sum, T* sums, T* to) {
  const MomentColumns columns(x.slabs, features, slab);
  moment_sums(kernels, x, rows, columns, sums);
  put_moment(columns, sums, weight_sum, features, to);
}

// Floats C [M, N of one slab] (+)= one term.
inline PairProduct plain_product(Index M, const Slabs& N, const Term<Pair>* term, float* C,
                                 bool accumulate) {
  PairProduct p{M, N, term, 1};
  p.C = C;
  p.c_stride = N.width;
  p.accumulate = accumulate;
  return p;
}

// moment_sums of bfloat16 rows in pairs, in slabs of [pairs][width].
inline void moment_sums(const Bf16Kernels& kernels, const Pair* x, const Slabs& slabs, Index pairs,
                        const MomentColumns& columns, float* sums) {
  const Index width = slabs.width, stride = width * pairs;
  constexpr Index step = kMomentRows / 2;
  for (Index first = 0; first < pairs; first += step) {
    const Index at = first * width;
    const Term<Pair> term{{x + at, 1, width, stride, width, kNoBlock, 0},
                          {x + columns.begin / width * stride + at, width, 0},
                          std::min(step, pairs - first)};
    kernels.product(plain_product(columns.end, columns.slabs, &term, sums, first > 0));
  }
}

// A left operand of a single feature: element (0, k) at data[k].
template <class T>
LeftOperand<T> one_feature(const T* data) {
  return {data, 0, kNoBlock, 0, 1, kNoBlock, 0};
}

}  // namespace trpo_fast
