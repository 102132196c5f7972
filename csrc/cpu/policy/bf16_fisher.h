// The passes of a Fisher product over one panel in bfloat16, for PolicyProblem.
//
// What enters a product of matrices is rounded: weights, the direction's weights, the layers'
// inputs, tangents and deltas; so are the slopes. Sums are floats, and so are the direction's
// biases, the head's metric and the gradient. With two parts a number x is kept as hi + lo, and a
// product is hi hi + hi lo + lo hi ("bf16x3"). `Rounding.matmul` of the reference
// backend is the same in torch.
#pragma once

#include "cpu/network/packed_network.h"
#include "cpu/policy/gradient_block.h"

namespace trpo_fast {

// A right operand in pairs, in slabs of columns: [slab][pairs][width].
struct PairMatrix {
  Slabs slabs;
  Index rows;  // K; pairs are half as many, rounded up
  Pair* part[kMaxParts];

  Index pairs() const { return (rows + 1) / 2; }
};

class Bf16Fisher {
 public:
  Bf16Fisher(const PackedNetwork<float>& network, Index panel_rows, int parts, int threads,
             Arena& arena);

  // `backward`: each layer's weight as [out][in slabs]; the first is not read. Once an update.
  void pack_weights(const PackedNetwork<float>& network, const std::vector<float*>& backward);
  // Once a product.
  void pack_direction(const PackedNetwork<float>& direction);

  // What a panel keeps for every product, and what a thread needs, in elements.
  Index cache_size() const { return cache_size_; }
  Index scratch_size() const { return scratch_size_; }

  void keep_observations(const MatrixView<const float>& x, Bf16* cache, Bf16* scratch) const;
  // phi(z), and phi'(z) or null where it is made from that.
  void keep_hidden(std::size_t layer, const Panel<float>& value, const float* slope, Index rows,
                   Bf16* cache) const;

  // A layer's inputs first .. first + count, inside one slab of them, of a row that was kept.
  void kept_input(std::size_t layer, Index row, Index first, Index count, const Bf16* cache,
                  float* to) const;
  // A slab of them, padded, where they have one part, else null.
  const Bf16* kept_slab(std::size_t layer, Index row, Index slab, const Bf16* cache) const;

  // out = J v; `next`: the cache that the next panel will read, or null.
  void tangent(Index rows, const Bf16* cache, const Bf16* next, Bf16* scratch,
               const Panel<float>& out) const;
  // Adds J' delta to a chunk's partial sums (`first`: sets them).
  void backward(Index rows, const Bf16* cache, const Panel<float>& delta, Bf16* scratch,
                const std::vector<GradientBlock>& blocks, float* partial, bool first) const;

 private:
  struct Layer {
    Index in, out;
    Slabs in_slabs, out_slabs;
    Activation activation;
    PairMatrix weight, direction;  // [in, out]
    PairMatrix backward;           // [out, in]
    const float* direction_bias;
    Index input, slope;  // offsets in a panel's cache
  };
  PairMatrix matrix(Index rows, Index columns, Arena& arena) const;
  void pack(const PairMatrix& to, const float* from) const;
  SplitRows rows_at(const Bf16* base, const Slabs& slabs) const;
  SplitRows buffer(Bf16* scratch, int which, const Slabs& slabs) const;
  // Of rounded rows, in one of the scratch's two places for them.
  PairMatrix pairs_of(const SplitRows& from, const Slabs& slabs, Index rows, Bf16* scratch,
                      int which) const;
  void add_terms(Term<Pair>* terms, int& count, const LeftOperand<Pair> (&left)[kMaxParts],
                 const PairMatrix& right) const;
  void weight_gradient(const GradientBlock& block, const PairMatrix& input, const PairMatrix& delta,
                       float* partial, bool first) const;

  const Bf16Kernels& kernels_;
  Index panel_rows_;
  int parts_, threads_;
  std::vector<Layer> layers_;
  Index cache_size_ = 0, scratch_size_ = 0, buffer_size_ = 0;
  Bf16* pack_buffers_;
  Index pack_buffer_size_;
};

}  // namespace trpo_fast
