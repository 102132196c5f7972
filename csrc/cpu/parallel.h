// A pool of threads that sleeps when idle, survives fork, and never changes a result: callers split
// the work into tasks by size alone, and a task does not know which thread runs it.
#pragma once

#include "common/layers.h"

namespace trpo_fast {

// Runs body(context, task, worker) for task = 0 .. tasks - 1 on up to `threads` threads, the
// caller's included; worker < threads is the number of the thread, for its scratch memory. Returns
// when all are done. body must not throw. When another thread is using the pool, the caller runs
// its tasks alone.
void parallel_for(Index tasks, int threads, void (*body)(void* context, Index task, int worker),
                  void* context);

template <class Function>
void parallel_for(Index tasks, int threads, Function&& function) {
  parallel_for(
      tasks, threads,
      [](void* context, Index task, int worker) {
        (*static_cast<std::remove_reference_t<Function>*>(context))(task, worker);
      },
      &function);
}

}  // namespace trpo_fast
