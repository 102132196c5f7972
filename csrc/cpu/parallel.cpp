#include "parallel.h"

#include <pthread.h>

#include <atomic>
#include <condition_variable>
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
    next_.store(0, std::memory_order_relaxed);
    active_ = threads - 1;
    // Idle workers count down too: a generation then cannot end before everyone has seen it.
    pending_.store(workers_, std::memory_order_relaxed);
    {
      std::lock_guard<std::mutex> lock(mutex_);
      generation_.fetch_add(1, std::memory_order_release);
    }
    wake_.notify_all();
    work(0);
    while (pending_.load(std::memory_order_acquire) > 0) relax_or_yield();
    return true;
  }

 private:
  // False when the system gives no more threads; those there are will do.
  bool start_worker() {
    const int number = workers_ + 1;
    const unsigned seen = generation_.load(std::memory_order_relaxed);
    try {
      std::thread([this, number, seen] { serve(number, seen); }).detach();
    } catch (const std::system_error&) {
      return false;
    }
    ++workers_;
    return true;
  }

  void serve(int number, unsigned seen) {
    for (;;) {
      for (int spin = 0; spin < kSpins && generation_.load(std::memory_order_acquire) == seen;
           ++spin) {
        relax();
      }
      if (generation_.load(std::memory_order_acquire) == seen) {
        std::unique_lock<std::mutex> lock(mutex_);
        wake_.wait(lock, [&] { return generation_.load(std::memory_order_acquire) != seen; });
      }
      ++seen;
      if (number <= active_) work(number);
      pending_.fetch_sub(1, std::memory_order_release);
    }
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
  std::atomic<unsigned> generation_{0};
  std::atomic<Index> next_{0};
  std::atomic<int> pending_{0};
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
