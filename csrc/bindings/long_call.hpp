// The guard of a call that may take seconds.
#pragma once

#include <pybind11/pybind11.h>

#include <chrono>

#include "interrupt.hpp"

namespace pylm::bindings {

// Python's pending signals, looked at ten times a second, as that takes the GIL: Ctrl-C ends the call.
inline void check_signals_at_times() {
    using Clock = std::chrono::steady_clock;
    thread_local Clock::time_point next{};
    const auto now = Clock::now();
    if (now < next) return;
    next = now + std::chrono::milliseconds(100);
    const pybind11::gil_scoped_acquire acquire;
    if (PyErr_CheckSignals() != 0) throw pybind11::error_already_set();
}

// Releases the GIL; what raises on a signal while it lives leaves nothing half done behind.
class LongCall {
  public:
    LongCall() noexcept : before_(interrupt_check) { interrupt_check = &check_signals_at_times; }
    ~LongCall() { interrupt_check = before_; }
    LongCall(const LongCall&) = delete;
    LongCall& operator=(const LongCall&) = delete;

  private:
    pybind11::gil_scoped_release release_;
    void (*before_)();
};

}  // namespace pylm::bindings
