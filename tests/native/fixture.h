// What the native drivers share: checks that count, memory of an exact size, and a batch of any
// shape.
#pragma once

#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>
#include <vector>

#include "cpu/policy/policy_problem.h"

namespace {

using namespace trpo_fast;

int checks = 0, failures = 0;

void check(bool good, const char* what, double value, double expected) {
  ++checks;
  if (good) return;
  ++failures;
  std::printf("FAILED %s: %.17g, expected %.17g\n", what, value, expected);
}

void check_close(const char* what, double value, double expected, double tolerance) {
  check(std::fabs(value - expected) <= tolerance * (1 + std::fabs(expected)), what, value,
        expected);
}

// Exactly the bytes asked for, aligned, so that one byte beyond is seen.
class Memory {
 public:
  explicit Memory(std::size_t bytes)
      : size_(bytes), raw_(std::aligned_alloc(kAlignment, round_up(Index(bytes), kAlignment))) {
    std::memset(raw_, 0xff, size_);  // NaN: what is read before it is written shows
  }
  ~Memory() {
    Arena::release(raw_, std::size_t(round_up(Index(size_), kAlignment)));
    std::free(raw_);
  }
  Memory(const Memory&) = delete;
  Memory& operator=(const Memory&) = delete;
  void* get() const { return raw_; }

 private:
  std::size_t size_;
  void* raw_;
};

struct Shape {
  Index rows, obs;
  std::vector<Index> hidden;
  int head;  // its place in Heads
  Index actions;
  std::vector<Index> nvec;
  Activation activation;
  bool weighted, masked, subset;
  Index cache_bytes;
  int threads;
  std::vector<HeadPart> parts = {};

  Head described() const {
    return {head, 0, actions, nvec.data(), parts.data(), Index(parts.size())};
  }
};

constexpr int kCategorical = 2, kBeta = 5, kJoint = Heads::kCount - 1;

// Blocks of categories, or a joint head's parts: one of each kind, in an order that `i` turns.
void complete(Shape& shape, int i, int most) {
  if (shape.head == kCategorical) shape.actions = 1;
  if (shape.head != kJoint) {
    const bool categories = facts_of(shape.head).categories;
    for (Index a = 0; a < shape.actions && categories; ++a) {
      shape.nvec.push_back(2 + (i + a) % most);
    }
    return;
  }
  shape.actions = 0;
  for (int k = 0; k < kJoint; ++k) {
    const int kind = (k + i) % kJoint, actions = kind == kCategorical ? 1 : 1 + (i + k) % 2;
    const std::size_t block = shape.nvec.size();
    for (int a = 0; a < actions && facts_of(kind).categories; ++a) {
      shape.nvec.push_back(2 + (i + a) % 7);
    }
    const Index outputs = width_of({kind, 0, actions, shape.nvec.data() + block});
    shape.parts.push_back({kind, int(outputs), actions});
    shape.actions += actions;
  }
}

// A row of actions as the head, or each of its parts, has them.
template <class T>
void fill_actions(const Shape& s, Index row, T* real) {
  const std::vector<HeadPart> whole{{s.head, 0, int(s.actions)}};
  Index block = 0;
  for (const HeadPart& part : s.parts.empty() ? whole : s.parts) {
    const HeadFacts facts = facts_of(part.kind);
    for (int a = 0; a < part.actions; ++a, ++real) {
      if (facts.categories) {
        *real = T((row * 7 + a) % s.nvec[std::size_t(block++)]);
      } else if (part.kind == kBeta) {
        *real = T(0.5 + 0.45 * std::sin(double(row + a)));
      } else if (!facts.normal_noise) {
        *real = T((row + a) % 3 == 0);
      }  // a Gaussian's is a normal number already
    }
  }
}

std::mt19937 engine(1);

template <class T>
std::vector<T> normal(Index n, double scale) {
  std::normal_distribution<double> draw(0, scale);
  std::vector<T> v(static_cast<std::size_t>(n));
  for (T& x : v) x = T(draw(engine));
  return v;
}

template <class T>
struct Fixture {
  std::vector<T> theta, obs, real, advantages, weights;
  std::vector<std::int64_t> categories;
  std::vector<std::uint8_t> mask;
  PolicyBatch<T> batch;

  explicit Fixture(const Shape& s) {
    const HeadFacts facts = facts_of(s.head);
    const Index outputs = width_of(s.described()), scales = scales_of(s.described());
    const bool log_std = scales > 0;
    std::vector<Index> widths{s.obs};
    widths.insert(widths.end(), s.hidden.begin(), s.hidden.end());
    widths.push_back(outputs);
    Index size = scales;
    for (std::size_t l = 0; l + 1 < widths.size(); ++l) size += (widths[l] + 1) * widths[l + 1];
    theta = normal<T>(size, 0.2);
    Index at = scales;
    for (std::size_t l = 0; l + 1 < widths.size(); ++l) {
      const Index in = widths[l], out = widths[l + 1], bias = at + in * out;
      const bool last = l + 2 == widths.size();
      // Small outputs where they are log stds: their exponentials bend the loss over the step
      // taken.
      const double scale = last && (s.head == kJoint || (facts.normal_noise && !log_std)) ? 0.2 : 2;
      for (Index i = at; i < bias; ++i) theta[i] *= T(scale / std::sqrt(double(in)));
      batch.layers.push_back({theta.data() + at, in, 1, theta.data() + bias, 1, in, out,
                              last ? Activation::identity : s.activation, T(0.5)});
      batch.offsets.push_back({at, bias});
      at = bias + out;
    }
    const Index n = s.rows;
    obs = normal<T>(n * (s.obs + 2), 1);  // two columns that are not read: a strided view
    real = normal<T>(n * s.actions, 1);
    advantages = normal<T>(n, 1);
    for (Index row = 0; row < n && !facts.categories; ++row) {
      fill_actions(s, row, real.data() + row * s.actions);
    }
    categories.assign(std::size_t(n * s.actions), 0);
    for (Index i = 0; i < n * s.actions && facts.categories; ++i) {
      categories[i] = (i * 7) % s.nvec[i % s.actions];
    }
    if (s.weighted) {
      weights = normal<T>(n, 1);
      for (T& w : weights) w = w * w + T(0.1);
    }
    batch.parameters = size;
    batch.head_kind = s.head;
    batch.actions = s.actions;
    batch.nvec = s.nvec;
    batch.parts = s.parts;
    batch.log_std = log_std ? theta.data() : nullptr;
    batch.log_std_stride = 1;
    batch.log_std_offset = log_std ? 0 : -1;
    batch.rows = {{obs.data(), n, s.obs, s.obs + 2, 1},
                  s.weighted ? weights.data() : nullptr,
                  nullptr,
                  mask_width_of(batch.head())};
    if (s.masked && facts.categories) {
      mask.assign(std::size_t(n * outputs), 1);
      for (Index row = 0; row < n; ++row) {
        Index block = 0;
        for (Index a = 0; a < s.actions; block += s.nvec[a++]) {
          const Index other = (categories[row * s.actions + a] + 1) % s.nvec[a];
          if (s.nvec[a] > 1) mask[row * outputs + block + other] = 0;
        }
      }
      batch.rows.mask = mask.data();
    }
    if (s.masked && s.head == kJoint) {  // all allowed, but read at its place
      mask.assign(std::size_t(n * batch.rows.mask_width), 1);
      batch.rows.mask = mask.data();
    }
    batch.fisher_is_all = !s.subset;
    batch.fisher_rows = batch.rows;
    batch.fisher_rows.obs.rows = (n + 1) / 2;
    batch.first_action = {real.data(), facts.categories ? categories.data() : nullptr, 1};
    batch.action_row_stride = s.actions;
    batch.advantages = advantages.data();
    batch.old_log_prob = nullptr;
    batch.kl_new_old = s.weighted;
    batch.cache_bytes = s.cache_bytes;
    batch.threads = s.threads;
    batch.bf16_parts = 0;
  }
};

}  // namespace
