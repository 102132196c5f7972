#include "cpu/kernels/amx.h"

#include <cstdlib>

#include "cpu/kernels/pair_product_check.h"

#if defined(TRPO_FAST_AMX)
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cerrno>
#include <cstdint>
#include <cstring>
#endif

namespace trpo_fast {

#if defined(TRPO_FAST_AMX)
namespace {

// Intel SDM vol. 2, CPUID: leaf 7 names the instructions, leaf 1Dh the size of the tiles.
bool has_instructions() {
  constexpr unsigned amx_bf16 = 1u << 22, amx_tile = 1u << 24;
  unsigned a, b, c, d;
  if (!__get_cpuid_count(7, 0, &a, &b, &c, &d)) return false;
  if ((d & amx_bf16) == 0 || (d & amx_tile) == 0) return false;
  if (!__get_cpuid_count(0x1D, 1, &a, &b, &c, &d)) return false;
  return (b & 0xFFFF) == 64 && b >> 16 == 8 && (c & 0xFFFF) == 16;
}

// XCR0: the system saves the tiles' configuration (17) and their contents (18).
bool system_saves_tiles() {
  constexpr unsigned osxsave = 1u << 27, tiles = 3u << 17;
  unsigned a, b, c, d;
  if (!__get_cpuid(1, &a, &b, &c, &d) || (c & osxsave) == 0) return false;
  unsigned low, high;
  asm volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  return (low & tiles) == tiles;
}

// Linux enables tile state for a process that asks (Documentation/arch/x86/xstate.rst); the numbers
// are in headers newer than those we may be built with.
bool system_permits_tiles() {
  constexpr long request_permission = 0x1023, tile_data = 18;
  return syscall(SYS_arch_prctl, request_permission, tile_data) == 0;
}

std::string refusal() {
  const char* wanted = std::getenv("TRPO_FAST_ISA");
  if (wanted != nullptr && *wanted != '\0' && std::strcmp(wanted, "amx_bf16") != 0) {
    return "TRPO_FAST_ISA names another instruction set";
  }
  if (!has_instructions()) return "this CPU has no AMX-BF16";
  if (!__builtin_cpu_supports("avx512bf16")) return "this CPU has no AVX512-BF16 beside it";
  if (!system_saves_tiles()) return "the operating system does not save the tiles' state";
  if (!system_permits_tiles()) {
    return std::string("the operating system refuses the tiles: ") + std::strerror(errno);
  }
  if (!pair_product_is_right(amx_bf16_product)) {
    return "its products are wrong on this machine; please report it with the CPU's name";
  }
  return "";
}

}  // namespace

const KernelTable& dense_kernels_amx_bf16() {
  static const KernelTable table = [] {
    KernelTable made = dense_kernels_avx512_bf16();
    made.isa = "amx_bf16";
    made.bf16.product = amx_bf16_product;
    return made;
  }();
  return table;
}

bool cpu_has_amx() {
  static const bool has = has_instructions();
  return has;
}

const std::string& amx_refusal() {
  static const std::string why = refusal();
  return why;
}
#else
bool cpu_has_amx() {
  return false;
}

const std::string& amx_refusal() {
  static const std::string why = "this build has no AMX code";
  return why;
}
#endif

}  // namespace trpo_fast
