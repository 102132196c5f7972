// The AMX kernel without AMX: csrc/cpu/kernels/amx_product.inl on the model of its tiles, against
// float64 sums; and the model against Intel's manual.
#include <sys/wait.h>
#include <unistd.h>

#include <cmath>
#include <csignal>
#include <cstdio>
#include <cstring>
#include <functional>
#include <limits>
#include <vector>

#include "cpu/kernels/dispatch.h"
#include "cpu/kernels/pair_product_check.h"
#include "emulation/amx_model.h"
#include "pair_product_error.h"

using namespace trpo_fast;

namespace {

int checks = 0, failures = 0;

void check(bool good, const char* what, double value = 0) {
  ++checks;
  if (good) return;
  ++failures;
  std::printf("FAILED %s: %.9g\n", what, value);
}

// In a process of its own, which the model ends.
void check_aborts(const char* what, const std::function<void()>& run) {
  std::fflush(nullptr);
  const pid_t child = fork();
  if (child == 0) {
    if (std::freopen("/dev/null", "w", stderr) == nullptr) _exit(1);
    run();
    _exit(0);
  }
  int status = 0;
  waitpid(child, &status, 0);
  check(WIFSIGNALED(status) && WTERMSIG(status) == SIGABRT, what, status);
}

TileConfig changed(const std::function<void(TileConfig&)>& change) {
  TileConfig config = whole_tiles();
  change(config);
  return config;
}

void drive_refusals() {
  const auto refuses = [](const char* what, const std::function<void(TileConfig&)>& change) {
    check_aborts(what, [&] { ModelTiles::configure(changed(change)); });
  };
  refuses("palette 2", [](TileConfig& c) { c.palette = 2; });
  refuses("a start row", [](TileConfig& c) { c.start_row = 1; });
  refuses("a reserved byte", [](TileConfig& c) { c.reserved[13] = 1; });
  refuses("17 rows", [](TileConfig& c) { c.rows[7] = 17; });
  refuses("68 bytes a row", [](TileConfig& c) { c.row_bytes[0] = 68; });
  refuses("a ninth tile", [](TileConfig& c) { c.rows[8] = c.row_bytes[8] = 4; });
  refuses("rows of no bytes", [](TileConfig& c) { c.row_bytes[3] = 0; });
  static float room[kTileRows * kTileWords];
  check_aborts("a load before the configuration", [] { ModelTiles::load<0>(room, 64); });
  check_aborts("a load after the release", [] {
    ModelTiles::configure(whole_tiles());
    ModelTiles::release();
    ModelTiles::load<0>(room, 64);
  });
  const auto refuses_use = [](const char* what, const std::function<void(TileConfig&)>& change,
                              void (*use)()) {
    check_aborts(what, [&] {
      ModelTiles::configure(changed(change));
      use();
    });
  };
  refuses_use(
      "a load of an unconfigured tile", [](TileConfig& c) { c.rows[2] = c.row_bytes[2] = 0; },
      [] { ModelTiles::load<2>(room, 64); });
  refuses_use(
      "pairs that differ", [](TileConfig& c) { c.rows[6] = 15; }, ModelTiles::multiply<0, 4, 6>);
  refuses_use(
      "columns that differ", [](TileConfig& c) { c.row_bytes[6] = 32; },
      ModelTiles::multiply<0, 4, 6>);
  refuses_use(
      "rows that differ", [](TileConfig& c) { c.rows[4] = 3; }, ModelTiles::multiply<0, 4, 6>);
  refuses_use("one tile twice", [](TileConfig&) {}, ModelTiles::multiply<0, 4, 4>);
}

Pair pair_of(float low, float high) {
  Pair bits[2];
  std::memcpy(&bits[0], &low, 4);
  std::memcpy(&bits[1], &high, 4);
  return bits[0] >> 16 | (bits[1] & 0xFFFF0000u);
}

// Element (0, 0) after start + left right, of one row and one column of pairs.
float multiplied(float start, const std::vector<Pair>& left, const std::vector<Pair>& right) {
  Pair a[kTileRows * kTileWords] = {}, b[kTileRows * kTileWords] = {};
  float c[kTileRows * kTileWords] = {start};
  for (std::size_t k = 0; k < left.size(); ++k) {
    a[k] = left[k];
    b[k * kTileWords] = right[k];
  }
  ModelTiles::configure(whole_tiles());
  ModelTiles::load<0>(c, 64);
  ModelTiles::load<4>(a, 64);
  ModelTiles::load<6>(b, 64);
  ModelTiles::multiply<0, 4, 6>();
  ModelTiles::store<0>(c, 64);
  ModelTiles::release();
  return c[0];
}

void drive_arithmetic() {
  const auto is = [](const char* what, float found, float wanted) {
    check(found == wanted && std::signbit(found) == std::signbit(wanted), what, double(found));
  };
  const float big = std::ldexp(1.0f, 24), tiny = std::ldexp(1.0f, -130);
  const Pair ones = pair_of(1, 1);
  is("low by low, high by high", multiplied(0, {pair_of(2, 3)}, {pair_of(5, 7)}), 31);
  is("even and odd products apart",
     multiplied(0, {ones, ones, ones}, {pair_of(big, 1), pair_of(-big, 1), pair_of(1, 0)}), 3);
  is("the old value last", multiplied(big, {ones}, {pair_of(1, 1)}), big + 2);
  is("ties to even, down", multiplied(0, {ones, ones}, {pair_of(big, 0), pair_of(1, 0)}), big);
  is("ties to even, up", multiplied(0, {ones, ones}, {pair_of(big, 0), pair_of(3, 0)}), big + 4);
  is("a denormal operand is zero", multiplied(0, {pair_of(tiny, 0)}, {pair_of(big, 0)}), 0);
  is("a denormal sum is zero",
     multiplied(0, {pair_of(std::ldexp(1.0f, -70), 0)}, {pair_of(std::ldexp(1.0f, -60), 0)}), 0);
  is("a denormal old value is zero", multiplied(tiny, {ones}, {pair_of(0, 0)}), 0);
  const float infinity = std::numeric_limits<float>::infinity();
  is("infinity", multiplied(0, {ones}, {pair_of(infinity, 1)}), infinity);
  check(std::isnan(multiplied(0, {ones}, {pair_of(infinity, -infinity)})), "infinities cancel");
}

void drive_products(const KernelTable& table, bool tiles) {
  constexpr PairOutput outputs[] = {PairOutput::store, PairOutput::accumulate, PairOutput::rounded};
  const long before = amx_model::multiplications();
  double worst = 0;
  int i = 0;
  for (const Index M : {1, 2, 15, 16, 17, 31, 32, 33, 48, 65, 96}) {
    for (const Index N : {1, 16, 17, 33, 48, 63, 64, 65, 113}) {
      for (const Index K : {1, 2, 3, 15, 16, 17, 31, 32, 33, 34, 47, 64, 65, 96, 97, 130}) {
        for (int repeat = 0; repeat < 2; ++repeat, ++i) {
          const PairCase c{M,
                           N,
                           K,
                           i % 7 == 0 ? Index(1 + i % 40) : 0,
                           1 + i / 2 % 2,
                           repeat == 0,
                           i / 3 % 2 == 0,
                           outputs[i % 3]};
          const double error = pair_product_error(table.bf16.product, c);
          check(error <= 1, "a product's error over its bound", error);
          check(!amx_model::configured(), "no tile state is left");
          if (error > worst) worst = error;
        }
      }
    }
  }
  // More pairs than are transposed at once: the vector kernel's.
  const PairCase longest{20, 20, 2400, 0, 1, true, true, PairOutput::store};
  check(pair_product_error(table.bf16.product, longest) <= 1, "a product of many rows");
  check((amx_model::multiplications() > before) == tiles, "who multiplied");
  check(pair_product_is_right(table.bf16.product), "the check at start-up");
  std::printf("%s: errors up to %.2f of their bound\n", table.isa, worst);
}

void (*right_product)(const PairProduct&);

// The check at start-up must not pass these.
void without_last_pair(const PairProduct& p) {
  std::vector<Term<Pair>> terms(p.terms, p.terms + p.term_count);
  for (Term<Pair>& term : terms) term.K -= term.K > 1;
  PairProduct other = p;
  other.terms = terms.data();
  right_product(other);
}
void without_bias(const PairProduct& p) {
  PairProduct other = p;
  other.bias = nullptr;
  right_product(other);
}
void without_last_row(const PairProduct& p) {
  PairProduct other = p;
  other.M -= p.M > 16;
  right_product(other);
}
void with_one_term(const PairProduct& p) {
  PairProduct other = p;
  other.term_count = 1;
  right_product(other);
}
void with_a_wrong_column(const PairProduct& p) {
  right_product(p);
  if (p.C != nullptr && p.N.count > 1) p.C[p.c_slab_stride] += 1e-3f;
}

void drive_wrong_products() {
  right_product = dense_kernels_baseline().bf16.product;
  check(pair_product_is_right(right_product), "the right product");
  check(!pair_product_is_right(without_last_pair), "without the last pair");
  check(!pair_product_is_right(without_bias), "without the bias");
  check(!pair_product_is_right(without_last_row), "without the last row");
  check(!pair_product_is_right(with_one_term), "with one term of several");
  check(!pair_product_is_right(with_a_wrong_column), "with a wrong column");
}

}  // namespace

int main() {
  drive_refusals();
  drive_arithmetic();
  drive_wrong_products();
  for (const KernelTable* table : emulated_kernels()) drive_products(*table, true);
  drive_products(dense_kernels_baseline(), false);
  std::printf("AMX driver: %d checks, %d failed\n", checks, failures);
  return failures == 0 ? 0 : 1;
}
