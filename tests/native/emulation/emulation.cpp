#include <sys/mman.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <mutex>
#include <random>
#include <vector>

#include "cuda_runtime.h"

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/common_interface_defs.h>
#endif
#if !defined(__x86_64__)
#include <ucontext.h>
#endif

dim3 threadIdx, blockIdx, blockDim, gridDim;

namespace emulation {
namespace {

constexpr std::size_t kStackBytes = 64 << 10;
constexpr int kWarp = 32;

#if defined(__x86_64__)
// Saves the callee's registers on the running stack, and goes on where `to` was left.
extern "C" void trpo_fast_switch(void** from, void* to);
asm(R"(
.text
.type trpo_fast_switch,@function
trpo_fast_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size trpo_fast_switch,.-trpo_fast_switch
)");
#endif

struct Barrier {
  int expected = 0, arrived = 0;
  unsigned generation = 0;
};

struct Fiber {
  dim3 thread, block;
  Barrier *waits = nullptr, *warp = nullptr;
  unsigned generation = 0;
  bool done = false;
  unsigned char* stack = nullptr;
#if defined(__x86_64__)
  void* at = nullptr;
#else
  ucontext_t at;
#endif
#if defined(__SANITIZE_ADDRESS__)
  void* fake_stack = nullptr;
#endif
};

struct Block {
  Barrier barrier;
  std::vector<Barrier> warps;
  std::vector<unsigned char> slots;
  std::unique_ptr<unsigned char, decltype(&std::free)> shared{nullptr, &std::free};
};

struct Launch {
  const std::function<void()>* kernel;
  std::vector<Fiber> fibers;
  std::vector<Block> blocks;
  Barrier grid;
  std::size_t shared_bytes;
};

Launch* launch = nullptr;
Fiber* running = nullptr;
unsigned order = 0;
std::mutex one_at_a_time;
#if defined(__x86_64__)
void* scheduler = nullptr;
#else
ucontext_t scheduler;
#endif
#if defined(__SANITIZE_ADDRESS__)
const void* scheduler_stack = nullptr;
std::size_t scheduler_size = 0;
void* scheduler_fake = nullptr;
#endif

void to_scheduler(bool last) {
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_start_switch_fiber(last ? nullptr : &running->fake_stack, scheduler_stack,
                                 scheduler_size);
#else
  (void)last;
#endif
#if defined(__x86_64__)
  trpo_fast_switch(&running->at, scheduler);
#else
  swapcontext(&running->at, &scheduler);
#endif
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(running->fake_stack, nullptr, nullptr);
#endif
}

void entry() {
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(nullptr, &scheduler_stack, &scheduler_size);
#endif
  (*launch->kernel)();
  running->done = true;
  to_scheduler(true);
  std::abort();  // a finished fiber is not resumed
}

void resume(Fiber& fiber) {
  running = &fiber;
  threadIdx = fiber.thread;
  blockIdx = fiber.block;
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_start_switch_fiber(&scheduler_fake, fiber.stack, kStackBytes);
#endif
#if defined(__x86_64__)
  trpo_fast_switch(&scheduler, fiber.at);
#else
  swapcontext(&scheduler, &fiber.at);
#endif
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(scheduler_fake, nullptr, nullptr);
#endif
}

void prepare(Fiber& fiber) {
#if defined(__x86_64__)
  // Six registers, the address that `ret` takes, and one word that keeps the ABI's alignment.
  auto* top = reinterpret_cast<void**>(fiber.stack + kStackBytes) - 8;
  std::fill_n(top, 8, nullptr);
  top[6] = reinterpret_cast<void*>(&entry);
  fiber.at = top;
#else
  getcontext(&fiber.at);
  fiber.at.uc_stack = {fiber.stack, 0, kStackBytes};
  fiber.at.uc_link = nullptr;
  makecontext(&fiber.at, &entry, 0);
#endif
}

bool runnable(const Fiber& fiber) {
  return !fiber.done && (fiber.waits == nullptr || fiber.generation != fiber.waits->generation);
}

void run_all() {
  std::vector<int> turns(launch->fibers.size());
  for (std::size_t i = 0; i < turns.size(); ++i) turns[i] = int(i);
  if (order == 1) std::reverse(turns.begin(), turns.end());
  std::mt19937 engine(order);
  for (std::size_t left = turns.size(); left > 0;) {
    bool progress = false;
    if (order > 1) std::shuffle(turns.begin(), turns.end(), engine);
    for (const int turn : turns) {
      Fiber& fiber = launch->fibers[std::size_t(turn)];
      if (!runnable(fiber)) continue;
      fiber.waits = nullptr;
      progress = true;
      resume(fiber);
      left -= fiber.done;
    }
    if (!progress) {
      std::fprintf(stderr, "emulation: a barrier that not every thread reaches\n");
      std::abort();
    }
  }
}

}  // namespace

void barrier(Scope scope) {
  Block& block = launch->blocks[blockIdx.x];
  Barrier& at = scope == Scope::grid    ? launch->grid
                : scope == Scope::block ? block.barrier
                                        : block.warps[threadIdx.x / kWarp];
  if (++at.arrived == at.expected) {
    at.arrived = 0;
    ++at.generation;
    return;
  }
  running->waits = &at;
  running->generation = at.generation;
  to_scheduler(false);
}

unsigned char* warp_slot(int lane) {
  const std::size_t thread = threadIdx.x / kWarp * kWarp + std::size_t(lane);
  return launch->blocks[blockIdx.x].slots.data() + 64 * thread;
}

void* dynamic_shared() {
  return launch->blocks[blockIdx.x].shared.get();
}

std::uint32_t tf32_word(float value) {
  std::uint32_t bits;
  std::memcpy(&bits, &value, sizeof(bits));
  if ((bits & 0x7f800000u) == 0x7f800000u) return bits;  // inf, NaN
  return (bits + 0x1000u) & ~std::uint32_t(0x1fff);
}

std::uint32_t bf16_pair(float low, float high) {
  const auto rounded = [](float value) {
    std::uint32_t bits;
    std::memcpy(&bits, &value, sizeof(bits));
    if ((bits & 0x7f800000u) == 0x7f800000u) {
      const bool nan = (bits & 0x7fffffu) != 0;
      return nan ? std::uint32_t(0x7fff) : bits >> 16;
    }
    return (bits + 0x7fffu + (bits >> 16 & 1)) >> 16;
  };
  return rounded(high) << 16 | rounded(low);
}

void multiply_add(bool bf16, float (&sums)[4], const std::uint32_t (&a)[4],
                  const std::uint32_t (&b)[2]) {
  struct Operands {
    std::uint32_t a[4], b[2];
  };
  Operands own;
  std::copy_n(a, 4, own.a);
  std::copy_n(b, 2, own.b);
  const int lane = int(threadIdx.x % kWarp), group = lane / 4, across = lane % 4;
  std::memcpy(warp_slot(lane), &own, sizeof(own));
  barrier(Scope::warp);
  const auto operands = [](int from) {
    Operands found;
    std::memcpy(&found, warp_slot(from), sizeof(found));
    return found;
  };
  const auto number = [](std::uint32_t bits) {
    float value;
    std::memcpy(&value, &bits, sizeof(value));
    return value;
  };
  for (int t = 0; t < 8; ++t) {  // words of the depth: t and t + 4 are one lane's
    for (int i = 0; i < 4; ++i) {
      // Sums 0 and 1 are of row `group`, 2 and 3 of the row 8 further; columns 2 across, + 1.
      const std::uint32_t left = operands(4 * group + t % 4).a[i / 2 + 2 * (t / 4)];
      const std::uint32_t right = operands(4 * (2 * across + i % 2) + t % 4).b[t / 4];
      if (bf16) {
        sums[i] += number(left << 16) * number(right << 16);
        sums[i] += number(left & 0xffff0000u) * number(right & 0xffff0000u);
      } else {
        sums[i] += number(left) * number(right);
      }
    }
  }
  barrier(Scope::warp);
}

void set_order(unsigned order_) {
  order = order_;
}

Device& device() {
  static Device imitated;
  return imitated;
}

int run(const std::function<void()>& kernel, dim3 grid, dim3 block, std::size_t shared_bytes) {
  const std::lock_guard<std::mutex> lock(one_at_a_time);
  if (const cudaError_t error = device().launch_error) {
    device().launch_error = cudaSuccess;
    return error;
  }
  if (int(shared_bytes) > device().shared_bytes || block.x % kWarp != 0) {
    return cudaErrorInvalidValue;
  }
  Launch state;
  state.kernel = &kernel;
  state.fibers.resize(grid.x * block.x);
  state.blocks.resize(grid.x);
  state.grid.expected = int(grid.x * block.x);
  const std::size_t stacks_bytes = state.fibers.size() * kStackBytes;
  void* const stacks = mmap(nullptr, stacks_bytes, PROT_READ | PROT_WRITE,
                            MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (stacks == MAP_FAILED) return cudaErrorMemoryAllocation;
  for (unsigned b = 0; b < grid.x; ++b) {
    Block& own = state.blocks[b];
    own.barrier.expected = int(block.x);
    own.warps.resize(block.x / kWarp);
    for (Barrier& warp : own.warps) warp.expected = kWarp;
    own.slots.resize(64 * block.x);
    // Poisoned: what a kernel reads before it wrote becomes NaN.
    own.shared.reset(static_cast<unsigned char*>(
        std::aligned_alloc(64, (shared_bytes + 63) & ~std::size_t(63))));
    std::fill_n(own.shared.get(), shared_bytes, 0xff);
    for (unsigned t = 0; t < block.x; ++t) {
      Fiber& fiber = state.fibers[b * block.x + t];
      fiber.thread = dim3(t, 0, 0);
      fiber.block = dim3(b, 0, 0);
      fiber.stack = static_cast<unsigned char*>(stacks) + (b * block.x + t) * kStackBytes;
      prepare(fiber);
    }
  }
  blockDim = block;
  gridDim = grid;
  launch = &state;
  run_all();
  launch = nullptr;
  munmap(stacks, stacks_bytes);
  return cudaSuccess;
}

}  // namespace emulation

const char* cudaGetErrorString(cudaError_t error) {
  if (error == cudaErrorMemoryAllocation) return "out of memory";
  return error == cudaSuccess ? "no error" : "invalid argument";
}

cudaError_t cudaGetDeviceCount(int* count) {
  *count = 1;
  return cudaSuccess;
}
cudaError_t cudaGetDevice(int* index) {
  *index = 0;
  return cudaSuccess;
}
cudaError_t cudaSetDevice(int index) {
  return index == 0 ? cudaSuccess : cudaErrorInvalidValue;
}
cudaError_t cudaDriverGetVersion(int* version) {
  *version = 13000;
  return cudaSuccess;
}
cudaError_t cudaRuntimeGetVersion(int* version) {
  return cudaDriverGetVersion(version);
}

cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int) {
  const emulation::Device& device = emulation::device();
  switch (attribute) {
    case cudaDevAttrMaxSharedMemoryPerBlockOptin:
      *value = device.shared_bytes;
      break;
    case cudaDevAttrMultiProcessorCount:
      *value = device.multiprocessors;
      break;
    case cudaDevAttrCooperativeLaunch:
      *value = 1;
      break;
    case cudaDevAttrComputeCapabilityMajor:
      *value = device.major;
      break;
    case cudaDevAttrComputeCapabilityMinor:
      *value = device.minor;
      break;
  }
  return cudaSuccess;
}
