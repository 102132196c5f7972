#include "cpu/policy/bf16_fisher.h"

#include <algorithm>
#include <cstring>

#include "cpu/kernels/dispatch.h"
#include "cpu/parallel.h"

namespace trpo_fast {
namespace {

Slope slope_kind(Activation activation) {
  switch (activation) {
    case Activation::identity:
      return Slope::one;
    case Activation::tanh:
      return Slope::of_tanh;
    case Activation::relu:
      return Slope::of_relu;
    default:
      return Slope::given;
  }
}

// element (m, k) = row m, features 2 k and 2 k + 1; written as vectors, read as words
LeftOperand<Pair> pair_columns_of(const Bf16* rows, Index stride, Index slab_stride) {
  return {
      reinterpret_cast<const Pair*>(rows), stride / 2, kNoBlock, 0, 1, stride / 2, slab_stride / 2};
}

}  // namespace

PairMatrix Bf16Fisher::matrix(Index rows, Index columns, Arena& arena) const {
  PairMatrix made{Slabs(columns), rows, {nullptr, nullptr}};
  for (int part = 0; part < parts_; ++part) {
    made.part[part] = arena.take<Pair>(made.slabs.size(made.pairs()));
  }
  return made;
}

Bf16Fisher::Bf16Fisher(const PackedNetwork<float>& network, Index panel_rows, int parts,
                       int threads, Arena& arena)
    : kernels_(dense_kernels().bf16), panel_rows_(panel_rows), parts_(parts), threads_(threads) {
  Index widest = 0, longest = 0;
  for (const PackedLayer<float>& from : network.layers) {
    const bool hidden = layers_.size() + 1 < network.layers.size(), first = layers_.empty();
    const Slabs in(from.in), out(from.out);
    const Index input = cache_size_, slope = input + parts_ * in.size(panel_rows);
    cache_size_ = slope + (hidden ? parts_ * out.size(panel_rows) : 0);
    const PairMatrix weight = matrix(first ? 0 : from.in, from.out, arena);
    const PairMatrix direction = matrix(from.in, from.out, arena);
    const PairMatrix backward = matrix(first ? 0 : from.out, from.in, arena);
    layers_.push_back({from.in, from.out, in, out, from.activation, weight, direction, backward,
                       nullptr, input, slope});
    widest = std::max({widest, in.size(1), out.size(1)});
    longest = std::max({longest, from.in, from.out});
  }
  buffer_size_ = parts_ * widest * panel_rows;
  // Two buffers of rows that take turns, two of pairs, and a slab of observations as floats.
  scratch_size_ = 4 * buffer_size_ + kSlabWidth * panel_rows * Index(sizeof(float) / sizeof(Bf16));
  pack_buffer_size_ = kSlabWidth * longest * kMaxParts;
  pack_buffers_ = arena.take<Bf16>(pack_buffer_size_ * threads);
}

// from: [slab][rows][width]
void Bf16Fisher::pack(const PairMatrix& to, const float* from) const {
  const Index width = to.slabs.width, size = to.rows * width;
  const int wanted = to.slabs.count > kOwnSlabs ? threads_ : 1;
  parallel_for(to.slabs.count, wanted, [&](Index slab, int worker) {
    Bf16* const hi = pack_buffers_ + worker * pack_buffer_size_;
    Bf16* const lo = parts_ > 1 ? hi + size : nullptr;
    kernels_.round(from + slab * size, size, hi, lo);
    for (int part = 0; part < parts_; ++part) {
      kernels_.pair_rows(hi + part * size, to.rows, width,
                         to.part[part] + slab * to.pairs() * width);
    }
  });
}

void Bf16Fisher::pack_weights(const PackedNetwork<float>& network,
                              const std::vector<float*>& backward) {
  for (std::size_t l = 1; l < layers_.size(); ++l) {
    pack(layers_[l].weight, network.layers[l].weight);
    pack(layers_[l].backward, backward[l]);
  }
}

void Bf16Fisher::pack_direction(const PackedNetwork<float>& direction) {
  for (std::size_t l = 0; l < layers_.size(); ++l) {
    pack(layers_[l].direction, direction.layers[l].weight);
    layers_[l].direction_bias = direction.layers[l].bias;
  }
}

SplitRows Bf16Fisher::rows_at(const Bf16* base, const Slabs& slabs) const {
  SplitRows rows;
  rows.stride = slabs.width;
  rows.slab_stride = slabs.width * panel_rows_;
  for (int part = 0; part < parts_; ++part) {
    rows.part[part] = const_cast<Bf16*>(base) + part * slabs.size(panel_rows_);
  }
  return rows;
}

SplitRows Bf16Fisher::buffer(Bf16* scratch, int which, const Slabs& slabs) const {
  return rows_at(scratch + which * buffer_size_, slabs);
}

void Bf16Fisher::keep_observations(const MatrixView<const float>& x, Bf16* cache,
                                   Bf16* scratch) const {
  const Slabs& slabs = layers_[0].in_slabs;
  const SplitRows to = rows_at(cache + layers_[0].input, slabs);
  float* const floats = reinterpret_cast<float*>(scratch + 4 * buffer_size_);
  for (Index slab = 0; slab < slabs.count; ++slab) {
    const Index first = slab * slabs.width;
    const Index columns = std::min(slabs.width, slabs.features - first);
    for (Index r = 0; r < x.rows; ++r) {
      const float* const from = x.data + r * x.row_stride + first * x.col_stride;
      float* const row = floats + r * slabs.width;
      for (Index c = 0; c < columns; ++c) row[c] = from[c * x.col_stride];
      std::fill(row + columns, row + slabs.width, 0.0f);
    }
    const Index at = slab * to.slab_stride;
    kernels_.round(floats, x.rows * slabs.width, to.part[0] + at,
                   to.part[1] ? to.part[1] + at : nullptr);
  }
}

void Bf16Fisher::keep_hidden(std::size_t l, const Panel<float>& value, const float* slope,
                             Index rows, Bf16* cache) const {
  const SplitRows values = rows_at(cache + layers_[l + 1].input, value.slabs);
  const SplitRows slopes = rows_at(cache + layers_[l].slope, value.slabs);
  const Index count = rows * value.slabs.width;
  for (Index slab = 0; slab < value.slabs.count; ++slab) {
    const Index at = slab * value.slab_stride();
    kernels_.round(value.data + at, count, values.part[0] + at,
                   values.part[1] ? values.part[1] + at : nullptr);
    kernels_.round_slope(slope_kind(layers_[l].activation), (slope ? slope : value.data) + at,
                         count, slopes.part[0] + at,
                         slopes.part[1] ? slopes.part[1] + at : nullptr);
  }
}

void Bf16Fisher::kept_input(std::size_t layer, Index row, Index first, Index count,
                            const Bf16* cache, float* to) const {
  const Slabs& slabs = layers_[layer].in_slabs;
  const SplitRows rows = rows_at(cache + layers_[layer].input, slabs);
  const Index at = first / slabs.width * rows.slab_stride + row * rows.stride + first % slabs.width;
  std::fill_n(to, count, 0.0f);
  for (int part = 0; part < parts_; ++part) {
    for (Index c = 0; c < count; ++c) {
      const Pair bits = Pair(rows.part[part][at + c]) << 16;
      float value;
      std::memcpy(&value, &bits, sizeof value);
      to[c] += value;
    }
  }
}

const Bf16* Bf16Fisher::kept_slab(std::size_t layer, Index row, Index slab,
                                  const Bf16* cache) const {
  if (parts_ > 1) return nullptr;
  const SplitRows rows = rows_at(cache + layers_[layer].input, layers_[layer].in_slabs);
  return rows.part[0] + slab * rows.slab_stride + row * rows.stride;
}

// left right in as many products of parts as the precision asks for
void Bf16Fisher::add_terms(Term<Pair>* terms, int& count,
                           const LeftOperand<Pair> (&left)[kMaxParts],
                           const PairMatrix& right) const {
  const Index width = right.slabs.width, K = right.pairs();
  const auto add = [&](int left_part, int right_part) {
    terms[count++] = {left[left_part], {right.part[right_part], width, width * K}, K};
  };
  add(0, 0);
  if (parts_ == 1) return;
  add(0, 1);
  add(1, 0);
}

void Bf16Fisher::tangent(Index rows, const Bf16* cache, const Bf16* next, Bf16* scratch,
                         const Panel<float>& out) const {
  SplitRows previous;
  for (std::size_t l = 0; l < layers_.size(); ++l) {
    const Layer& layer = layers_[l];
    Term<Pair> terms[kMaxPairTerms];
    PairProduct p{rows, layer.out_slabs, terms};
    p.bias = layer.direction_bias;
    const auto add = [&](const SplitRows& from, const PairMatrix& matrix) {
      LeftOperand<Pair> left[kMaxParts];
      for (int part = 0; part < parts_; ++part) {
        left[part] = pair_columns_of(from.part[part], from.stride, from.slab_stride);
      }
      add_terms(terms, p.term_count, left, matrix);
    };
    add(rows_at(cache + layer.input, layer.in_slabs), layer.direction);
    if (l > 0) add(previous, layer.weight);
    if (l + 1 == layers_.size()) {
      p.C = out.data;
      p.c_stride = out.slabs.width;
      p.c_slab_stride = out.slab_stride();
    } else {
      p.rounded = previous = buffer(scratch, int(l % 2), layer.out_slabs);
      p.slope = rows_at(cache + layer.slope, layer.out_slabs);
    }
    if (l + 2 == layers_.size() && next != nullptr) {
      p.ahead = next;
      p.ahead_count = cache_size_;
    }
    kernels_.product(p);
  }
}

PairMatrix Bf16Fisher::pairs_of(const SplitRows& from, const Slabs& slabs, Index rows,
                                Bf16* scratch, int which) const {
  PairMatrix to{slabs, rows, {nullptr, nullptr}};
  Pair* const base = reinterpret_cast<Pair*>(scratch + (2 + which) * buffer_size_);
  const Index size = slabs.width * to.pairs();
  for (int part = 0; part < parts_; ++part) {
    to.part[part] = base + part * slabs.count * size;
    for (Index slab = 0; slab < slabs.count; ++slab) {
      kernels_.pair_rows(from.part[part] + slab * from.slab_stride, rows, slabs.width,
                         to.part[part] + slab * size);
    }
  }
  return to;
}

void Bf16Fisher::weight_gradient(const GradientBlock& block, const PairMatrix& input,
                                 const PairMatrix& delta, float* partial, bool first) const {
  // gW = a' delta, or its transpose: element (m, k) of the left = feature m, rows 2 k and 2 k + 1
  const PairMatrix& from = block.out_major ? delta : input;
  const Index width = from.slabs.width;
  LeftOperand<Pair> left[kMaxParts];
  for (int part = 0; part < parts_; ++part) {
    left[part] = {from.part[part], 1, width, width * from.pairs(), width, kNoBlock, 0};
  }
  Term<Pair> terms[kMaxPairTerms];
  PairProduct p{block.major, block.minor, terms};
  p.C = partial + block.weight;
  p.c_stride = block.minor.width;
  p.c_slab_stride = block.minor.width * block.major;
  p.accumulate = !first;
  add_terms(terms, p.term_count, left, block.out_major ? input : delta);
  kernels_.product(p);
  float* const bias = partial + block.bias;
  if (first) std::fill_n(bias, delta.slabs.size(1), 0.0f);
  for (int part = 0; part < parts_; ++part) {
    for (Index slab = 0; slab < delta.slabs.count; ++slab) {
      kernels_.column_sums(delta.part[part] + slab * delta.slabs.width * delta.pairs(),
                           delta.pairs(), delta.slabs.width, bias + slab * delta.slabs.width);
    }
  }
}

void Bf16Fisher::backward(Index rows, const Bf16* cache, const Panel<float>& u, Bf16* scratch,
                          const std::vector<GradientBlock>& blocks, float* partial,
                          bool first) const {
  int which = 0;
  SplitRows delta = buffer(scratch, which, u.slabs);
  for (Index slab = 0; slab < u.slabs.count; ++slab) {
    const Index at = slab * u.slab_stride();
    kernels_.round(u.data + at, rows * u.slabs.width, delta.part[0] + at,
                   delta.part[1] ? delta.part[1] + at : nullptr);
  }
  for (std::size_t l = layers_.size(); l-- > 0;) {
    const Layer& layer = layers_[l];
    const PairMatrix input =
        pairs_of(rows_at(cache + layer.input, layer.in_slabs), layer.in_slabs, rows, scratch, 0);
    const PairMatrix deltas = pairs_of(delta, layer.out_slabs, rows, scratch, 1);
    weight_gradient(blocks[l], input, deltas, partial, first);
    if (l == 0) return;
    // delta_{l-1} = (delta_l W_l') phi'(z_{l-1})
    LeftOperand<Pair> left[kMaxParts];
    for (int part = 0; part < parts_; ++part) {
      left[part] = pair_columns_of(delta.part[part], delta.stride, delta.slab_stride);
    }
    Term<Pair> terms[kMaxPairTerms];
    which = 1 - which;
    PairProduct p{rows, layer.in_slabs, terms};
    p.rounded = buffer(scratch, which, layer.in_slabs);
    p.slope = rows_at(cache + layers_[l - 1].slope, layer.in_slabs);
    add_terms(terms, p.term_count, left, layer.backward);
    kernels_.product(p);
    delta = p.rounded;
  }
}

}  // namespace trpo_fast
