// After Intel's SDM, vol. 2: the operation sections of LDTILECFG, TILELOADD, TILESTORED, TILEZERO
// and TDPBF16PS, and the conditions of exception classes AMX-E1 to E5 (vol. 2, 2.10).
#include "amx_model.h"

#include <cfloat>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>

namespace amx_model {
namespace {

using trpo_fast::Index;
using trpo_fast::TileConfig;

constexpr int kTiles = 8, kRows = 16, kRowBytes = 64;  // palette 1

struct State {
  bool configured = false;
  TileConfig config{};
  unsigned char data[kTiles][kRows][kRowBytes] = {};
  long multiplications = 0;
};
thread_local State state;

void require(bool good, const char* what) {
  if (good) return;
  std::fprintf(stderr, "AMX model: %s\n", what);
  std::abort();
}

int rows(int tile) {
  require(tile >= 0 && tile < kTiles, "no such tile");
  require(state.configured, "the tiles are not configured");
  require(state.config.rows[tile] != 0, "the tile is not configured");
  return state.config.rows[tile];
}
int row_bytes(int tile) {
  return state.config.row_bytes[tile];
}

template <class T>
T element(int tile, int row, int index) {
  T value;
  std::memcpy(&value, &state.data[tile][row][index * int(sizeof(T))], sizeof value);
  return value;
}

float flushed(float x) {
  return std::fabs(x) < FLT_MIN ? std::copysign(0.0f, x) : x;  // NaN stays
}

float widened(std::uint16_t x) {
  const std::uint32_t bits = std::uint32_t(x) << 16;
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return flushed(value);
}

// One rounding: the product of two 8-bit significands is exact in double, and so rounding the sum
// to double first does no harm (Figueroa 1995: 53 >= 2 * 24 + 2).
float multiply_add(float a, float b, float c) {
  return flushed(float(double(a) * double(b) + double(flushed(c))));
}

float add(float a, float b) {
  return flushed(flushed(a) + flushed(b));
}

}  // namespace

void configure(const TileConfig& config) {
  if (config.palette == 0) return release();
  require(config.palette == 1, "palettes are 0 and 1");
  require(config.start_row == 0, "the start row is not 0");
  for (const unsigned char byte : config.reserved) require(byte == 0, "a reserved byte is not 0");
  for (int tile = 0; tile < 16; ++tile) {
    const int tall = config.rows[tile], wide = config.row_bytes[tile];
    require(tile < kTiles || (tall == 0 && wide == 0), "palette 1 has 8 tiles");
    require(tall <= kRows, "more than 16 rows");
    require(wide <= kRowBytes, "more than 64 bytes a row");
    require((tall == 0) == (wide == 0), "rows without bytes, or bytes without rows");
  }
  const long before = state.multiplications;
  state = State();
  state.config = config;
  state.configured = true;
  state.multiplications = before;
}

void release() {
  const long before = state.multiplications;
  state = State();
  state.multiplications = before;
}

void zero(int tile) {
  rows(tile);
  std::memset(state.data[tile], 0, sizeof state.data[tile]);
}

void load(int tile, const void* from, Index stride) {
  const int count = rows(tile);
  zero(tile);
  for (int r = 0; r < count; ++r) {
    std::memcpy(state.data[tile][r], static_cast<const char*>(from) + r * stride,
                std::size_t(row_bytes(tile)));
  }
}

void store(int tile, void* to, Index stride) {
  const int count = rows(tile);
  for (int r = 0; r < count; ++r) {
    std::memcpy(static_cast<char*>(to) + r * stride, state.data[tile][r],
                std::size_t(row_bytes(tile)));
  }
}

void multiply(int c, int a, int b) {
  require(c != a && a != b && b != c, "a tile is named twice");
  require(rows(c) == rows(a), "rows of the result and of the left operand differ");
  require(row_bytes(c) == row_bytes(b), "columns of the result and of the right operand differ");
  require(row_bytes(a) == 4 * rows(b), "pairs of the operands differ");
  require(row_bytes(a) % 4 == 0 && row_bytes(b) % 4 == 0, "a row is not whole words");
  const int columns = row_bytes(c) / 4, pairs = row_bytes(a) / 4;
  for (int m = 0; m < rows(c); ++m) {
    float even[kRows] = {}, odd[kRows] = {};
    for (int k = 0; k < pairs; ++k) {
      const float a_even = widened(element<std::uint16_t>(a, m, 2 * k));
      const float a_odd = widened(element<std::uint16_t>(a, m, 2 * k + 1));
      for (int n = 0; n < columns; ++n) {
        const float b_even = widened(element<std::uint16_t>(b, k, 2 * n));
        const float b_odd = widened(element<std::uint16_t>(b, k, 2 * n + 1));
        even[n] = multiply_add(a_even, b_even, even[n]);
        odd[n] = multiply_add(a_odd, b_odd, odd[n]);
      }
    }
    for (int n = 0; n < columns; ++n) {
      const float sum = add(element<float>(c, m, n), add(even[n], odd[n]));
      std::memcpy(&state.data[c][m][4 * n], &sum, sizeof sum);
    }
  }
  ++state.multiplications;
}

bool configured() {
  return state.configured;
}
long multiplications() {
  return state.multiplications;
}

}  // namespace amx_model
