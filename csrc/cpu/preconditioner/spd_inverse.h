// (A + damping I)^-1 of a symmetric positive semidefinite A by the sweep operator, in blocks and
// without pivoting, which such a matrix does not need (Goodnight 1979). Nearly all of it is the
// kernels' products.
#pragma once

#include "common/layers.h"

namespace trpo_fast {

// matrix [n, n], contiguous; to: in slabs (slabs.h), [slabs][n][width]. False where a pivot is not
// positive; `to` is then undefined.
template <class T>
bool damped_inverse(const T* matrix, Index n, double damping, T* to, int threads);

}  // namespace trpo_fast
