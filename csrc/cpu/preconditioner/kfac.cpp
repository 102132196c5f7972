#include "cpu/preconditioner/kfac.h"

#include <algorithm>

#include "cpu/kernels/dispatch.h"
#include "cpu/kernels/panels.h"
#include "cpu/parallel.h"

namespace trpo_fast {
namespace {

// Rows of a task: enough work for a thread to be woken for.
constexpr Index kTaskRows = 96;

// A product restricted to one slab of columns and some rows of the result.
template <class T>
Product<T> part(Product<T> p, Index slab, Index first_row) {
  const Index at = slab * p.c_slab_stride + first_row * p.c_stride;
  p.C += at;
  if (p.S != nullptr) p.S += at;
  for (int t = 0; t < p.term_count; ++t) {
    p.terms[t].left.data += first_row * p.terms[t].left.m_stride;
    p.terms[t].right.data += slab * p.terms[t].right.slab_stride;
  }
  p.N.features = std::min(p.N.width, p.N.features - slab * p.N.width);
  p.N.count = 1;
  p.M = std::min(kTaskRows, p.M - first_row);
  return p;
}

template <class T>
LeftOperand<T> dense(const T* data, Index m_stride, Index k_stride) {
  return {data, m_stride, kNoBlock, 0, k_stride, kNoBlock, 0};
}
// of a square matrix
template <class T>
LeftOperand<T> rows_of_slabs(const T* data, Index size) {
  const Slabs slabs(size);
  return {data, slabs.width, kNoBlock, 0, 1, slabs.width, slabs.width * size};
}

}  // namespace

template <class T>
Index Preconditioner<T>::work_size(const std::vector<KroneckerBlock<T>>& blocks) {
  Index size = 0;
  for (const KroneckerBlock<T>& block : blocks) size += 2 * Slabs(block.columns).size(block.out);
  return size;
}

template <class T>
Preconditioner<T>::Preconditioner(const T* diagonal, Index n, std::vector<KroneckerBlock<T>> blocks,
                                  T* memory, int threads)
    : kernels_(dense_kernels().get<T>()),
      diagonal_(diagonal),
      n_(n),
      blocks_(std::move(blocks)),
      threads_(threads) {
  for (const KroneckerBlock<T>& block : blocks_) {
    const Index half = Slabs(block.columns).size(block.out);
    first_.push_back(memory);
    second_.push_back(memory + half);
    memory += 2 * half;
  }
}

template <class T>
typename Preconditioner<T>::Step Preconditioner<T>::step_of(const KroneckerBlock<T>& block,
                                                            int stage) {
  constexpr Step eigen[kStages] = {Step::enter, Step::rotate, Step::back, Step::leave};
  constexpr Step inverse[kStages] = {Step::enter, Step::back, Step::none, Step::none};
  return block.scale != nullptr ? eigen[stage] : inverse[stage];
}

template <class T>
Product<T> Preconditioner<T>::product(const KroneckerBlock<T>& block, Step step, const T* r,
                                      T* from, T* to) const {
  const Slabs slabs(block.columns);
  const Panel<T> source{from, slabs, block.out};
  Product<T> p = into<T>({to, slabs, block.out}, block.out, nullptr);
  switch (step) {
    case Step::none:
      break;
    case Step::enter:  // R U_A or R (A + c I)^-1, the weight's columns and the bias's
      if (block.weight >= 0) {
        add_term<T>(p, dense(r + block.weight, block.inputs, Index(1)),
                    packed<T>(block.right, slabs, block.columns), block.inputs);
      }
      if (block.bias >= 0) {
        const T* const last = block.right + (block.columns - 1) * slabs.width;
        add_term<T>(p, dense(r + block.bias, Index(1), Index(0)),
                    packed<T>(last, slabs, block.columns), 1);
      }
      break;
    case Step::rotate:  // (U_G' .) / (l_G l_A' + damping)
      add_term<T>(p, dense(block.left, Index(1), block.out), columns_of(source), block.out);
      p.finish = Finish::times_slope;
      p.S = block.scale;
      break;
    case Step::back:  // U_G . or (G + c I)^-1 .
      add_term<T>(p,
                  block.scale != nullptr ? dense(block.left, block.out, Index(1))
                                         : rows_of_slabs(block.left, block.out),
                  columns_of(source), block.out);
      break;
    case Step::leave:  // . U_A'
      add_term<T>(p, rows_of(source), packed<T>(block.right_transposed, slabs, block.columns),
                  block.columns);
      break;
  }
  return p;
}

template <class T>
void Preconditioner<T>::run(int stage, const T* r) const {
  std::vector<Product<T>> tasks;
  for (std::size_t b = 0; b < blocks_.size(); ++b) {
    const Step step = step_of(blocks_[b], stage);
    if (step == Step::none) continue;
    const bool to_second = stage % 2 == 1;
    const Product<T> whole = product(blocks_[b], step, r, to_second ? first_[b] : second_[b],
                                     to_second ? second_[b] : first_[b]);
    for (Index slab = 0; slab < whole.N.count; ++slab) {
      for (Index row = 0; row < whole.M; row += kTaskRows) tasks.push_back(part(whole, slab, row));
    }
  }
  if (tasks.empty()) return;
  parallel_for(Index(tasks.size()), threads_,
               [&](Index task, int) { kernels_.product(tasks[std::size_t(task)]); });
}

template <class T>
void Preconditioner<T>::copy_out(const KroneckerBlock<T>& block, const T* from, T* z) const {
  const Slabs slabs(block.columns);
  for (Index slab = 0; slab < slabs.count && block.weight >= 0; ++slab) {
    const Index first = slab * slabs.width;
    const Index columns = std::min(slabs.width, block.inputs - first);
    for (Index o = 0; o < block.out && columns > 0; ++o) {
      const T* const row = from + (slab * block.out + o) * slabs.width;
      std::copy_n(row, columns, z + block.weight + o * block.inputs + first);
    }
  }
  const Index last = block.columns - 1;
  for (Index o = 0; o < block.out && block.bias >= 0; ++o) {
    const Index slab = last / slabs.width;
    z[block.bias + o] = from[(slab * block.out + o) * slabs.width + last % slabs.width];
  }
}

template <class T>
void Preconditioner<T>::apply(const T* r, T* z) const {
  for (Index i = 0; i < n_; ++i) z[i] = diagonal_[i] * r[i];
  for (int stage = 0; stage < kStages; ++stage) run(stage, r);
  for (std::size_t b = 0; b < blocks_.size(); ++b) copy_out(blocks_[b], second_[b], z);
}

template class Preconditioner<float>;
template class Preconditioner<double>;

}  // namespace trpo_fast
