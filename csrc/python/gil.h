// Python's lock around native code, for threads that the interpreter's exit may overtake.
//
// A daemon thread that asks for the lock of a finalizing interpreter is ended by pthread_exit
// (until CPython 3.14, which hangs it). That unwinds the stack, and through C++ frames it ends in
// std::terminate: the process aborts after its work was done. Such a thread sleeps here instead,
// until the process is gone.
#pragma once

#include <pybind11/pybind11.h>
#include <unistd.h>

#include <atomic>
#include <stdexcept>
#include <string>

namespace trpo_fast {

template <class Take>
auto or_sleep_forever(Take&& take) noexcept {
  try {
    return take();
  } catch (...) {  // only the unwinding of pthread_exit: CPython itself throws nothing
    for (;;) pause();
  }
}

// Without the lock for a scope.
class GilReleased {
 public:
  GilReleased() : state_(PyEval_SaveThread()) {}
  ~GilReleased() {
    or_sleep_forever([this] { PyEval_RestoreThread(state_); });
  }
  GilReleased(const GilReleased&) = delete;
  GilReleased& operator=(const GilReleased&) = delete;

 private:
  PyThreadState* state_;
};

// With the lock for a scope inside a GilReleased one.
class GilHeld {
 public:
  GilHeld() : state_(or_sleep_forever([] { return PyGILState_Ensure(); })) {}
  ~GilHeld() { PyGILState_Release(state_); }
  GilHeld(const GilHeld&) = delete;
  GilHeld& operator=(const GilHeld&) = delete;

 private:
  PyGILState_STATE state_;
};

// One caller at a time, for an object whose workspace two would share: with the GIL released, a
// second thread can enter.
class Exclusive {
 public:
  Exclusive(std::atomic_flag& busy, const char* what) : busy_(busy) {
    if (busy_.test_and_set()) {
      throw std::runtime_error(std::string(what) +
                               " is at work in another thread; make one for each thread");
    }
  }
  ~Exclusive() { busy_.clear(); }
  Exclusive(const Exclusive&) = delete;
  Exclusive& operator=(const Exclusive&) = delete;

 private:
  std::atomic_flag& busy_;
};

}  // namespace trpo_fast
