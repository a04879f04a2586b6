// Lets whoever embeds the core end a long call, between two of its tasks.
#pragma once

namespace pylm {

// Called on the thread that has set it while it works off tasks; throws to end the call. Results of a call that
// was ended are thrown away, so only calls that keep no state of their own set it.
inline thread_local void (*interrupt_check)() = nullptr;

inline void check_interrupt() {
    if (interrupt_check != nullptr) interrupt_check();
}

}  // namespace pylm
