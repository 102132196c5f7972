#include "cpu/kernels/pair_product_check.h"

#include <cstring>
#include <vector>

#include "cpu/kernels/panels.h"

namespace trpo_fast {
namespace {

struct Shape {
  Index M, N, K;
  int parts;        // of each operand
  bool transposed;  // the left operand as a weight gradient's: pairs below each other
  bool bias, accumulate, rounded;
};

// Integers from -4 to 4: sums of a thousand products, times a slope, are exact in float. None is 0,
// so that the sign of a zero does not depend on an order.
class Integers {
 public:
  float operator()() {
    state_ = state_ * 1664525u + 1013904223u;
    constexpr float drawn[] = {-4, -3, -2, -1, 1, 2, 3, 4};
    return drawn[state_ >> 16 & 7];
  }
  // bfloat16 has the upper half of a float's bits.
  Bf16 rounded() {
    const float value = (*this)();
    Pair bits;
    std::memcpy(&bits, &value, sizeof bits);
    return Bf16(bits >> 16);
  }
  Pair pair() {
    const Pair low = rounded();
    return low | Pair(rounded()) << 16;
  }
  std::vector<Pair> pairs(Index count) {
    std::vector<Pair> made(static_cast<std::size_t>(count));
    for (Pair& word : made) word = pair();
    return made;
  }
  std::vector<float> floats(Index count) {
    std::vector<float> made(static_cast<std::size_t>(count));
    for (float& x : made) x = (*this)();
    return made;
  }

 private:
  Pair state_ = 1;
};

// left [M, K] right [K, N] of a shape, and everything that a product may write.
class Multiplication {
 public:
  explicit Multiplication(const Shape& shape) : shape_(shape), N_(shape.N) {
    Integers integers;
    const Slabs left(shape.transposed ? shape.M : shape.K);
    const Index rows = shape.transposed ? pairs() : (shape.M + 1) / 2;
    for (int part = 0; part < shape.parts; ++part) {
      left_.push_back(integers.pairs(left.size(rows)));
      right_.push_back(integers.pairs(N_.size(pairs())));
      slope_.push_back(integers.pairs(N_.size(shape.M)));
    }
    bias_ = integers.floats(N_.size(1));
    C_ = integers.floats(N_.size(shape.M));
    rounded_.assign(kMaxParts, integers.pairs(N_.size(shape.M)));
  }

  void compute(void (*product)(const PairProduct&)) {
    std::vector<Term<Pair>> terms;
    for (int left = 0; left < shape_.parts; ++left) {
      for (int right = 0; left + right < shape_.parts; ++right) terms.push_back(term(left, right));
    }
    PairProduct p{shape_.M, N_, terms.data(), int(terms.size())};
    if (shape_.bias) p.bias = bias_.data();
    if (shape_.rounded) {
      p.rounded = split(rounded_);
      p.slope = split(slope_);
    } else {
      p.C = C_.data();
      p.c_stride = N_.width;
      p.c_slab_stride = N_.width * shape_.M;
      p.accumulate = shape_.accumulate;
    }
    product(p);
  }

  bool same_result(const Multiplication& other) const {
    return std::memcmp(C_.data(), other.C_.data(), C_.size() * sizeof(float)) == 0 &&
           rounded_ == other.rounded_;
  }

 private:
  Index pairs() const { return (shape_.K + 1) / 2; }

  Term<Pair> term(int left_part, int right_part) const {
    const Pair* const data = left_[std::size_t(left_part)].data();
    const Index width = Slabs(shape_.transposed ? shape_.M : shape_.K).width, half = width / 2;
    return {shape_.transposed
                ? LeftOperand<Pair>{data, 1, width, width * pairs(), width, kNoBlock, 0}
                : LeftOperand<Pair>{data, half, kNoBlock, 0, 1, half, half * shape_.M},
            {right_[std::size_t(right_part)].data(), N_.width, N_.width * pairs()},
            pairs()};
  }
  SplitRows split(std::vector<std::vector<Pair>>& parts) const {
    SplitRows rows;
    rows.stride = N_.width;
    rows.slab_stride = N_.width * shape_.M;
    for (int part = 0; part < shape_.parts; ++part) {
      rows.part[part] = reinterpret_cast<Bf16*>(parts[std::size_t(part)].data());
    }
    return rows;
  }

  Shape shape_;
  Slabs N_;
  std::vector<std::vector<Pair>> left_, right_, slope_, rounded_;  // by part
  std::vector<float> bias_, C_;
};

}  // namespace

bool pair_product_is_right(void (*product)(const PairProduct&)) {
  int i = 0;
  for (const Index M : {Index(1), Index(16), Index(37)}) {
    for (const Index N : {Index(5), Index(48), Index(70)}) {
      for (const Index K : {Index(3), Index(64), Index(97)}) {
        for (const bool transposed : {false, true}) {
          const int output = i / 2 % 3;
          const Shape shape{M, N, K, 1 + i % 2, transposed, i % 3 == 0, output == 1, output == 2};
          Multiplication found(shape), expected(shape);
          found.compute(product);
          expected.compute(dense_kernels_baseline().bf16.product);
          if (!found.same_result(expected)) return false;
          ++i;
        }
      }
    }
  }
  return true;
}

}  // namespace trpo_fast
