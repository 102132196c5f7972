// The tile registers of AMX: eight of 16 rows of 64 bytes, configured and released around each use.
// (Intel SDM, vol. 1 ch. 18 for the state; vol. 2 LDTILECFG, TILELOADD, TDPBF16PS.)
#pragma once

#include "cpu/kernels/bf16_kernels.h"

namespace trpo_fast {

constexpr Index kTileRows = 16;
constexpr Index kTileWords = 16;  // 32-bit words of a row: pairs of bfloat16, or floats

// What LDTILECFG reads.
struct alignas(64) TileConfig {
  std::uint8_t palette, start_row, reserved[14];
  std::uint16_t row_bytes[16];
  std::uint8_t rows[16];
};
static_assert(sizeof(TileConfig) == 64, "LDTILECFG reads 64 bytes");

// Every tile whole: what is smaller comes padded with zeros.
constexpr TileConfig whole_tiles() {
  TileConfig config{};
  config.palette = 1;
  for (int tile = 0; tile < 8; ++tile) {
    config.row_bytes[tile] = std::uint16_t(kTileWords * Index(sizeof(Pair)));
    config.rows[tile] = std::uint8_t(kTileRows);
  }
  return config;
}

#if defined(__x86_64__)
namespace {

// Assembly, because gcc's intrinsics do not say that they read and write memory.
struct HardwareTiles {
  static TRPO_FAST_INLINE void configure(const TileConfig& config) {
    asm volatile("ldtilecfg %0" ::"m"(config));
  }
  static TRPO_FAST_INLINE void release() { asm volatile("tilerelease"); }

  template <int tile>
  static TRPO_FAST_INLINE void zero() {
    asm volatile("tilezero %%tmm%c0" ::"i"(tile));
  }
  // Strides are bytes between rows; 0 repeats one row.
  template <int tile>
  static TRPO_FAST_INLINE void load(const void* from, Index stride) {
    asm volatile("tileloadd (%0,%1,1), %%tmm%c2" ::"r"(from), "r"(stride), "i"(tile) : "memory");
  }
  template <int tile>
  static TRPO_FAST_INLINE void store(void* to, Index stride) {
    asm volatile("tilestored %%tmm%c2, (%0,%1,1)" ::"r"(to), "r"(stride), "i"(tile) : "memory");
  }
  // c[16, 16] += a[16, 16 pairs] b[16 pairs, 16]
  template <int c, int a, int b>
  static TRPO_FAST_INLINE void multiply() {
    asm volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(c), "i"(a), "i"(b));
  }
};

}  // namespace
#endif

}  // namespace trpo_fast
