#include "pair_product_error.h"

#include <cmath>
#include <cstring>
#include <limits>
#include <vector>

#include "cpu/kernels/panels.h"

namespace trpo_fast {
namespace {

constexpr Bf16 kUntouched = 0xFFFF;  // a NaN: what must be neither read nor written
constexpr double kFloatRounding = 1.0 / (1 << 24);

float widened(Bf16 x) {
  const Pair bits = Pair(x) << 16;
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

// Numbers that bfloat16 holds, signs mixed, of magnitudes from scale / 16 to scale.
class Numbers {
 public:
  Bf16 operator()(float scale) {
    state_ = state_ * 1664525u + 1013904223u;
    const float magnitude =
        std::ldexp(scale, -int(state_ >> 30)) * (1 + (state_ >> 23) % 128 / 128.0f) / 2;
    Pair bits;
    std::memcpy(&bits, &magnitude, sizeof bits);
    return Bf16(bits >> 16 | (state_ >> 22 & 1) << 15);
  }

 private:
  Pair state_ = 1;
};

// A matrix [rows, features] in slabs, zeros where padded; one part of an operand.
struct Rows {
  Slabs slabs;
  Index rows;
  std::vector<Bf16> data;

  Rows(Index rows_, Index features, float scale, Numbers& numbers)
      : slabs(features), rows(rows_), data(std::size_t(slabs.size(rows_)), kUntouched) {
    for (Index r = 0; r < rows; ++r) {
      for (Index slab = 0; slab < slabs.count; ++slab) {
        for (Index c = 0; c < slabs.used(slab); ++c) {
          const bool there = slab * slabs.width + c < features;
          data[at(r, slab * slabs.width + c)] = there ? numbers(scale) : Bf16(0);
        }
      }
    }
  }
  std::size_t at(Index r, Index f) const {
    return std::size_t((f / slabs.width * rows + r) * slabs.width + f % slabs.width);
  }
  double operator()(Index r, Index f) const { return double(widened(data[at(r, f)])); }

  // Rows 2 k and 2 k + 1 side by side, as pair_rows makes them.
  std::vector<Pair> pairs() const {
    const Index half = (rows + 1) / 2;
    std::vector<Pair> made(std::size_t(slabs.size(half)));
    for (Index f = 0; f < slabs.count * slabs.width; ++f) {
      for (Index k = 0; k < half; ++k) {
        const Pair low = data[at(2 * k, f)];
        const Pair high = 2 * k + 1 < rows ? data[at(2 * k + 1, f)] : 0;
        made[std::size_t((f / slabs.width * half + k) * slabs.width + f % slabs.width)] =
            low | high << 16;
      }
    }
    return made;
  }
};

// left [M, K] right [K, N], in one or two parts each, as values and as what a kernel reads.
struct Operands {
  Index K;
  std::vector<Rows> left, right;
  std::vector<std::vector<Pair>> left_pairs, right_pairs;
  bool transposed;

  Operands(const PairCase& c, Index K_, Numbers& numbers) : K(K_), transposed(c.transposed) {
    for (int part = 0; part < c.parts; ++part) {
      const float scale = part == 0 ? 1.0f : 1.0f / 256;
      left.push_back(transposed ? Rows(K, c.M, scale, numbers) : Rows(c.M, K, scale, numbers));
      right.push_back(Rows(K, c.N, scale, numbers));
      right_pairs.push_back(right.back().pairs());
      left_pairs.push_back(transposed ? left.back().pairs() : words(left.back()));
    }
  }
  static std::vector<Pair> words(const Rows& rows) {
    std::vector<Pair> made(rows.data.size() / 2);
    std::memcpy(made.data(), rows.data.data(), made.size() * sizeof(Pair));
    return made;
  }
  double left_at(int part, Index m, Index k) const {
    return transposed ? left[std::size_t(part)](k, m) : left[std::size_t(part)](m, k);
  }
  Term<Pair> term(int left_part, int right_part) const {
    const Slabs &from = left[0].slabs, &to = right[0].slabs;
    const Index width = from.width, pairs = (K + 1) / 2;
    const Pair* const data = left_pairs[std::size_t(left_part)].data();
    const Index half = width / 2, rows = left[0].rows;
    return {transposed ? LeftOperand<Pair>{data, 1, width, width * pairs, width, kNoBlock, 0}
                       : LeftOperand<Pair>{data, half, kNoBlock, 0, 1, half, half * rows},
            {right_pairs[std::size_t(right_part)].data(), to.width, to.width * pairs},
            pairs};
  }
};

struct Sum {
  double value = 0, magnitude = 0;
  Index count = 0;

  void add(double x) { value += x, magnitude += std::fabs(x), ++count; }
  // Of any order of summation (Higham, Accuracy and Stability of Numerical Algorithms, 4.2), and of
  // what is flushed to zero on the way.
  double error() const {
    const double share = double(count) * kFloatRounding;
    return share / (1 - share) * magnitude + double(count) * std::numeric_limits<float>::min();
  }
};

struct Result {
  Slabs slabs;
  Index M;
  std::vector<float> before, C, bias;
  std::vector<Bf16> rounded[2];
  Rows slope, slope_lo;

  Result(const PairCase& c, Numbers& numbers)
      : slabs(c.N),
        M(c.M),
        bias(std::size_t(slabs.count * slabs.width)),
        slope(c.M, c.N, 1, numbers),
        slope_lo(c.M, c.N, 1.0f / 256, numbers) {
    const std::size_t size = std::size_t(slabs.size(M));
    for (std::size_t i = 0; i < size; ++i) before.push_back(widened(numbers(1)));
    C = before;
    for (float& b : bias) b = widened(numbers(1));
    for (auto& part : rounded) part.assign(size, kUntouched);
  }
  SplitRows split(Bf16* hi, Bf16* lo, int parts) const {
    return {{hi, parts > 1 ? lo : nullptr}, slabs.width, slabs.width * M};
  }
};

PairProduct product_of(const PairCase& c, const std::vector<Term<Pair>>& terms, Result& result) {
  PairProduct p{c.M, result.slabs, terms.data(), int(terms.size())};
  p.bias = c.bias ? result.bias.data() : nullptr;
  p.accumulate = c.output == PairOutput::accumulate;
  if (c.output == PairOutput::rounded) {
    p.rounded = result.split(result.rounded[0].data(), result.rounded[1].data(), c.parts);
    p.slope = result.split(result.slope.data.data(), result.slope_lo.data.data(), c.parts);
  } else {
    p.C = result.C.data();
    p.c_stride = result.slabs.width;
    p.c_slab_stride = result.slabs.width * c.M;
  }
  return p;
}

// Bias and products of element (m, n), in the parts that `terms` multiply.
Sum exact_sum(const PairCase& c, const std::vector<Operands>& operands, const Result& result,
              Index m, Index n) {
  Sum sum;
  if (c.bias) sum.add(double(result.bias[std::size_t(n)]));
  for (const Operands& of : operands) {
    for (int i = 0; i < c.parts; ++i) {
      for (int j = 0; i + j < c.parts; ++j) {
        for (Index k = 0; k < of.K; ++k) {
          sum.add(of.left_at(i, m, k) * of.right[std::size_t(j)](k, n));
        }
      }
    }
  }
  return sum;
}

// An element's error as a share of its bound.
double share_of_bound(const PairCase& c, Sum sum, const Result& result, Index m, Index n) {
  const std::size_t at = result.slope.at(m, n);
  if (c.output != PairOutput::rounded) {
    if (c.output == PairOutput::accumulate) sum.add(double(result.before[at]));
    return std::fabs(double(result.C[at]) - sum.value) / sum.error();
  }
  const bool two = c.parts > 1;
  const double slope = result.slope(m, n) + (two ? result.slope_lo(m, n) : 0);
  double found = double(widened(result.rounded[0][at]));
  if (two) found += double(widened(result.rounded[1][at]));
  sum.count += 2;  // the slope's own sum, and the product with it
  const double error = sum.error() * std::fabs(slope);
  // To 8 bits, or to 8 and 8 more of the rest.
  const double rounding = two ? 1.0 / (1 << 16) : 1.0 / (1 << 8);
  return std::fabs(found - sum.value * slope) /
         (error + rounding * (std::fabs(sum.value * slope) + error));
}

// What lies beyond the padded columns, and what is not asked for, is as it was.
bool rest_is_untouched(const PairCase& c, const Result& result) {
  const bool writes_C = c.output != PairOutput::rounded;
  for (Index slab = 0; slab < result.slabs.count; ++slab) {
    for (Index m = 0; m < c.M; ++m) {
      for (Index column = 0; column < result.slabs.width; ++column) {
        const std::size_t at = result.slope.at(m, slab * result.slabs.width + column);
        const bool used = column < result.slabs.used(slab);
        if (!(used && writes_C) && result.C[at] != result.before[at]) return false;
        for (int part = 0; part < 2; ++part) {
          if (used && !writes_C && part < c.parts) continue;
          if (result.rounded[part][at] != kUntouched) return false;
        }
      }
    }
  }
  return true;
}

}  // namespace

double pair_product_error(void (*product)(const PairProduct&), const PairCase& c) {
  Numbers numbers;
  std::vector<Operands> operands{Operands(c, c.K, numbers)};
  if (c.second_K > 0) operands.emplace_back(c, c.second_K, numbers);
  std::vector<Term<Pair>> terms;
  for (const Operands& of : operands) {
    terms.push_back(of.term(0, 0));
    if (c.parts == 1) continue;
    terms.push_back(of.term(0, 1));
    terms.push_back(of.term(1, 0));
  }
  Result result(c, numbers);
  product(product_of(c, terms, result));
  double worst = rest_is_untouched(c, result) ? 0 : std::numeric_limits<double>::infinity();
  for (Index m = 0; m < c.M; ++m) {
    for (Index n = 0; n < c.N; ++n) {
      const double share = share_of_bound(c, exact_sum(c, operands, result, m, n), result, m, n);
      if (!(share <= worst)) worst = share >= 0 ? share : std::numeric_limits<double>::infinity();
    }
  }
  return worst;
}

}  // namespace trpo_fast
