// The preconditioner's part of driver.cpp, which includes this after its checks.
#pragma once

#include <cmath>
#include <vector>

#include "cpu/preconditioner/kfac.h"

namespace {

// A block's M^-1 R against the definition, for a layer with or without weight, bias and scale.
template <class T>
void drive_preconditioner(Index inputs, Index out, bool weight, bool bias, bool scaled) {
  const Index columns = (weight ? inputs : 0) + (bias ? 1 : 0), n = inputs * out + out + 3;
  if (columns == 0) return;
  const Slabs slabs(columns);
  const auto entry = [](Index i, Index j) { return std::sin(double(3 * i + 7 * j + i * j)); };
  const auto at = [&](Index rows, Index i, Index j) {
    return (j / slabs.width * rows + i) * slabs.width + j % slabs.width;
  };
  std::vector<T> left(Slabs(out).size(out)), right(slabs.size(columns)),
      transposed(slabs.size(columns));
  std::vector<T> scale(slabs.size(out)), diagonal(n, T(2)), r(n), z(n);
  for (Index i = 0; i < n; ++i) r[i] = T(entry(i, 5));
  const Slabs left_slabs(out);
  const auto left_at = [&](Index i, Index j) {
    if (scaled) return i * out + j;
    return (j / left_slabs.width * out + i) * left_slabs.width + j % left_slabs.width;
  };
  for (Index i = 0; i < out * out; ++i)
    left[left_at(i / out, i % out)] = T(entry(i / out, i % out + 1));
  for (Index i = 0; i < columns; ++i) {
    for (Index j = 0; j < columns; ++j) {
      right[at(columns, i, j)] = transposed[at(columns, j, i)] = T(entry(i + 2, j));
    }
    for (Index o = 0; o < out; ++o) scale[at(out, o, i)] = T(1 + 0.5 * entry(o, i));
  }
  const Index bias_at = bias ? inputs * out + 1 : -1;
  const KroneckerBlock<T> block{weight ? Index(1) : Index(-1),
                                bias_at,
                                inputs,
                                columns,
                                out,
                                left.data(),
                                right.data(),
                                scaled ? transposed.data() : nullptr,
                                scaled ? scale.data() : nullptr};
  std::vector<T> memory(Preconditioner<T>::work_size({block}));
  const Preconditioner<T> M(diagonal.data(), n, {block}, memory.data(), 2);
  M.apply(r.data(), z.data());

  const auto place = [&](Index o, Index j) {
    return weight && j < inputs ? 1 + o * inputs + j : bias_at + o;
  };
  const auto L = [&](Index i, Index j) { return double(left[left_at(i, j)]); };
  std::vector<double> a(out * columns), b(out * columns);
  const auto times_right = [&](const std::vector<double>& from, bool turned) {
    std::vector<double> to(out * columns);
    for (Index o = 0; o < out; ++o) {
      for (Index j = 0; j < columns; ++j) {
        for (Index k = 0; k < columns; ++k) {
          const Index where = turned ? at(columns, j, k) : at(columns, k, j);
          to[o * columns + j] += from[o * columns + k] * double(right[where]);
        }
      }
    }
    return to;
  };
  const auto left_times = [&](const std::vector<double>& from, bool turned) {
    std::vector<double> to(out * columns);
    for (Index o = 0; o < out; ++o) {
      for (Index j = 0; j < columns; ++j) {
        for (Index k = 0; k < out; ++k) {
          to[o * columns + j] += (turned ? L(k, o) : L(o, k)) * from[k * columns + j];
        }
      }
    }
    return to;
  };
  for (Index o = 0; o < out; ++o) {
    for (Index j = 0; j < columns; ++j) a[o * columns + j] = double(r[place(o, j)]);
  }
  a = times_right(a, false);
  if (scaled) {
    b = left_times(a, true);
    for (Index o = 0; o < out; ++o) {
      for (Index j = 0; j < columns; ++j) b[o * columns + j] *= double(scale[at(out, o, j)]);
    }
    a = times_right(left_times(b, false), true);
  } else {
    a = left_times(a, false);
  }
  double error = 0, size = 1;
  std::vector<bool> covered(n, false);
  for (Index o = 0; o < out; ++o) {
    for (Index j = 0; j < columns; ++j) {
      const double difference = double(z[place(o, j)]) - a[o * columns + j];
      error += difference * difference;
      size += a[o * columns + j] * a[o * columns + j];
      covered[place(o, j)] = true;
    }
  }
  check_close("M^-1 r in a block", std::sqrt(error / size), 0, sizeof(T) == 4 ? 1e-5 : 1e-13);
  for (Index i = 0; i < n; ++i) {
    if (!covered[i]) check_close("M^-1 r outside", double(z[i]), 2 * double(r[i]), 0);
  }
}

}  // namespace
