#include "cpu/parallel.h"

#include <pthread.h>
#include <signal.h>

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <memory>
#include <mutex>
#include <system_error>
#include <thread>

namespace trpo_fast {
namespace {

inline void relax() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#endif
}

// Long enough to bridge the gap between two products of one solve, short enough not to be seen.
constexpr int kSpins = 2000;

// Signals are for the program's own threads: a handler of theirs may expect their thread-locals,
// and a wait of theirs to be the one that a signal ends.
class SignalsBlocked {
 public:
  SignalsBlocked() {
    sigset_t all;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before_);
  }
  ~SignalsBlocked() { pthread_sigmask(SIG_SETMASK, &before_, nullptr); }
  SignalsBlocked(const SignalsBlocked&) = delete;
  SignalsBlocked& operator=(const SignalsBlocked&) = delete;

 private:
  sigset_t before_;
};

class Pool {
 public:
  // False when another caller holds the pool.
  bool run(Index tasks, int threads, void (*body)(void*, Index, int), void* context) {
    std::unique_lock<std::mutex> owner(owner_, std::try_to_lock);
    if (!owner.owns_lock()) return false;
    while (workers_ < threads - 1 && start_worker()) {
    }
    body_ = body;
    context_ = context;
    tasks_ = tasks;
    active_ = threads - 1;
    next_.store(0, std::memory_order_relaxed);
    finished_.store(0, std::memory_order_relaxed);
    {
      std::lock_guard<std::mutex> lock(mutex_);
      const std::uint64_t generation = generation_of(state_.load(std::memory_order_relaxed)) + 1;
      state_.store(generation << 32 | kOpen, std::memory_order_release);
    }
    wake_.notify_all();
    work(0);
    // All tasks are taken. Only workers that joined are waited for: one that the system has not yet
    // let run (another process or another library's spinning threads may hold its core) is not.
    const std::uint64_t closed = state_.fetch_and(~kOpen, std::memory_order_acq_rel);
    const std::uint64_t joined = closed & kJoined;
    while (finished_.load(std::memory_order_acquire) != joined) relax_or_yield();
    return true;
  }

 private:
  // state_: the generation, whether it may still be joined, and how many workers have joined it.
  static constexpr std::uint64_t kOpen = std::uint64_t(1) << 31;
  static constexpr std::uint64_t kJoined = kOpen - 1;
  static std::uint64_t generation_of(std::uint64_t state) { return state >> 32; }

  // False when the system gives no more threads; those there are will do.
  bool start_worker() {
    const int number = workers_ + 1;
    const std::uint64_t seen = generation_of(state_.load(std::memory_order_relaxed));
    const SignalsBlocked signals;  // which a new thread inherits
    try {
      std::thread([this, number, seen] { serve(number, seen); }).detach();
    } catch (const std::system_error&) {
      return false;
    }
    ++workers_;
    return true;
  }

  void serve(int number, std::uint64_t seen) {
    for (;;) {
      seen = wait_for_next(seen);
      if (!join(seen)) continue;
      // Joined: the generation, and with it body_ and the rest, stays until this worker is done.
      if (number <= active_) work(number);
      finished_.fetch_add(1, std::memory_order_release);
    }
  }

  std::uint64_t wait_for_next(std::uint64_t seen) {
    const auto current = [this] { return generation_of(state_.load(std::memory_order_acquire)); };
    for (int spin = 0; spin < kSpins && current() == seen; ++spin) relax();
    if (current() == seen) {
      std::unique_lock<std::mutex> lock(mutex_);
      wake_.wait(lock, [&] { return current() != seen; });
    }
    return current();
  }

  bool join(std::uint64_t generation) {
    std::uint64_t state = state_.load(std::memory_order_acquire);
    while (generation_of(state) == generation && (state & kOpen) != 0) {
      if (state_.compare_exchange_weak(state, state + 1, std::memory_order_acq_rel)) return true;
    }
    return false;
  }

  void work(int number) {
    for (;;) {
      const Index task = next_.fetch_add(1, std::memory_order_relaxed);
      if (task >= tasks_) return;
      body_(context_, task, number);
    }
  }

  // With fewer cores than threads a spinning caller would keep the last worker from finishing.
  void relax_or_yield() {
    for (int spin = 0; spin < 64; ++spin) relax();
    std::this_thread::yield();
  }

  std::mutex owner_, mutex_;
  std::condition_variable wake_;
  std::atomic<std::uint64_t> state_{0};
  std::atomic<std::uint64_t> finished_{0};
  std::atomic<Index> next_{0};
  void (*body_)(void*, Index, int) = nullptr;
  void* context_ = nullptr;
  Index tasks_ = 0;
  int active_ = 0;
  int workers_ = 0;
};

// Never destroyed: its detached workers may outlive main. After fork the child has no workers, so
// it leaves the parent's pool behind and starts its own.
std::atomic<Pool*> pool{nullptr};

Pool& current_pool() {
  static const int registered = pthread_atfork(nullptr, nullptr, [] { pool.store(new Pool); });
  (void)registered;
  Pool* existing = pool.load();
  if (existing != nullptr) return *existing;
  auto fresh = std::make_unique<Pool>();
  if (pool.compare_exchange_strong(existing, fresh.get())) return *fresh.release();
  return *existing;
}

}  // namespace

void parallel_for(Index tasks, int threads, void (*body)(void*, Index, int), void* context) {
  if (tasks < threads) threads = int(tasks);
  if (threads > 1 && current_pool().run(tasks, threads, body, context)) return;
  for (Index task = 0; task < tasks; ++task) body(context, task, 0);
}

}  // namespace trpo_fast
