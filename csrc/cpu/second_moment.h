// x'x over the rows of a matrix in slabs: what K-FAC's factors are, one slab of columns a task.
#pragma once

#include <algorithm>

#include "panels.h"

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

// to = x'x / weight_sum, the part of one slab; sums: memory of [features][width].
template <class T>
void second_moment(const Kernels<T>& kernels, const Panel<T>& x, Index rows, Index features,
                   Index slab, double weight_sum, T* sums, T* to) {
  const MomentColumns columns(x.slabs, features, slab);
  const Index width = x.slabs.width;
  for (Index row = 0; row < rows; row += kMomentRows) {
    const Panel<T> block{x.row(row), x.slabs, x.panel_rows};
    RightOperand<T> right = columns_of(block);
    right.data += slab * right.slab_stride;
    Product<T> p{columns.end,
                 columns.slabs,
                 {},
                 0,
                 nullptr,
                 sums,
                 width,
                 0,
                 row == 0 ? Finish::store : Finish::accumulate,
                 nullptr};
    add_term<T>(p, features_of(block), right, std::min(kMomentRows, rows - row));
    kernels.product(p);
  }
  put_moment(columns, sums, weight_sum, features, to);
}

// The same for bfloat16 rows in pairs, in slabs of [pairs][width].
inline void second_moment(const Bf16Kernels& kernels, const Pair* x, const Slabs& slabs,
                          Index pairs, Index features, Index slab, double weight_sum, float* sums,
                          float* to) {
  const MomentColumns columns(slabs, features, slab);
  const Index width = slabs.width, stride = width * pairs;
  constexpr Index step = kMomentRows / 2;
  for (Index first = 0; first < pairs; first += step) {
    const Index at = first * width;
    Term<Pair> term{{x + at, 1, width, stride, width, kNoBlock, 0},
                    {x + slab * stride + at, width, 0},
                    std::min(step, pairs - first)};
    kernels.product({columns.end,
                     columns.slabs,
                     &term,
                     1,
                     nullptr,
                     sums,
                     width,
                     0,
                     first > 0,
                     {},
                     {},
                     nullptr,
                     0});
  }
  put_moment(columns, sums, weight_sum, features, to);
}

}  // namespace trpo_fast
