#include "cpu/kernels/dispatch.h"

#include <cstdlib>
#include <stdexcept>

#include "cpu/kernels/amx.h"

namespace trpo_fast {
namespace {

std::vector<const KernelTable*> available_tables() {
  std::vector<const KernelTable*> tables;
#if defined(TRPO_FAST_EMULATED_AMX)
  for (const KernelTable* table : emulated_kernels()) tables.push_back(table);
#endif
  tables.push_back(&dense_kernels_baseline());
#if defined(__x86_64__) && !defined(TRPO_FAST_BASELINE_ONLY)
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) {
    tables.push_back(&dense_kernels_avx2());
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
        __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl")) {
      tables.push_back(&dense_kernels_avx512());
      if (__builtin_cpu_supports("avx512bf16")) tables.push_back(&dense_kernels_avx512_bf16());
    }
  }
#endif
#if defined(TRPO_FAST_AMX)
  if (amx_refusal().empty()) tables.push_back(&dense_kernels_amx_bf16());
#endif
  return tables;
}

const KernelTable& choose() {
  const auto tables = available_tables();
  const char* wanted = std::getenv("TRPO_FAST_ISA");
  if (wanted == nullptr || *wanted == '\0') return *tables.back();
  std::string names;
  for (const KernelTable* table : tables) {
    if (std::string(wanted) == table->isa) return *table;
    names += (names.empty() ? "" : ", ") + std::string(table->isa);
  }
  throw std::runtime_error("TRPO_FAST_ISA is \"" + std::string(wanted) +
                           "\", which this CPU or build cannot run; use one of: " + names +
                           "; or unset it to take the best" +
                           (std::string(wanted) == "amx_bf16" ? ": " + amx_refusal() : ""));
}

}  // namespace

const KernelTable& dense_kernels() {
  static const KernelTable& table = choose();
  return table;
}

std::vector<std::string> available_isas() {
  std::vector<std::string> names;
  for (const KernelTable* table : available_tables()) names.emplace_back(table->isa);
  return names;
}

}  // namespace trpo_fast
