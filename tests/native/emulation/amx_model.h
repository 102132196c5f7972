// The tile registers of csrc/cpu/kernels/amx_tiles.h in software, as strict as the CPU: what it
// refuses by an exception ends the process here. One set of registers a thread.
#pragma once

#include "cpu/kernels/amx_tiles.h"

namespace amx_model {

void configure(const trpo_fast::TileConfig& config);
void release();
void zero(int tile);
void load(int tile, const void* from, trpo_fast::Index stride);
void store(int tile, void* to, trpo_fast::Index stride);
void multiply(int c, int a, int b);

// Of this thread.
bool configured();
long multiplications();

}  // namespace amx_model

namespace {

struct ModelTiles {
  static void configure(const trpo_fast::TileConfig& config) { amx_model::configure(config); }
  static void release() { amx_model::release(); }
  template <int tile>
  static void zero() {
    amx_model::zero(tile);
  }
  template <int tile>
  static void load(const void* from, trpo_fast::Index stride) {
    amx_model::load(tile, from, stride);
  }
  template <int tile>
  static void store(void* to, trpo_fast::Index stride) {
    amx_model::store(tile, to, stride);
  }
  template <int c, int a, int b>
  static void multiply() {
    amx_model::multiply(c, a, b);
  }
};

}  // namespace
