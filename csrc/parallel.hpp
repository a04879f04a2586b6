// Deterministic data parallelism: work is cut by index alone, so results never depend on the threads.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstddef>
#include <exception>
#include <mutex>
#include <thread>
#include <vector>

#include "interrupt.hpp"

namespace pylm {

// Number of threads that a caller's wish means: 0 is one for every core.
inline unsigned resolve_threads(unsigned num_threads) noexcept {
    return num_threads != 0 ? num_threads : std::max(1U, std::thread::hardware_concurrency());
}

// Call task(index) once for every index in [0, count), on up to `num_threads` threads (0: all cores).
// Indices are handed out one by one in rising order, so tasks may differ in cost; they must write to places
// of their own. After an exception no further task starts; when all threads have stopped, the exception of
// the lowest index is rethrown: the same one whatever the threads, since all tasks before a failed one had
// started. Where the system refuses more threads, those at hand do the work. The calling thread looks for an
// interrupt before each of its tasks.
template <typename Task>
void parallel_for(std::size_t count, unsigned num_threads, Task&& task) {
    const std::size_t workers = std::min<std::size_t>(resolve_threads(num_threads), count);
    if (workers <= 1) {
        for (std::size_t index = 0; index < count; ++index) {
            check_interrupt();
            task(index);
        }
        return;
    }
    std::atomic<std::size_t> next{0};
    std::exception_ptr failure;
    std::size_t failed = count;
    std::mutex failure_mutex;
    const auto work = [&] {
        for (;;) {
            const std::size_t index = next.fetch_add(1, std::memory_order_relaxed);
            if (index >= count) return;
            try {
                check_interrupt();
                task(index);
            } catch (...) {
                next.store(count, std::memory_order_relaxed);
                const std::scoped_lock lock(failure_mutex);
                if (index < failed) {
                    failed = index;
                    failure = std::current_exception();
                }
                return;
            }
        }
    };
    std::vector<std::thread> threads;
    threads.reserve(workers - 1);
    try {
        for (std::size_t i = 1; i < workers; ++i) threads.emplace_back(work);
    } catch (const std::exception&) {
        // A limit of the machine or of the user, or memory; fewer threads give the same result.
    }
    work();
    for (std::thread& thread : threads) thread.join();
    if (failure) std::rethrow_exception(failure);
}

}  // namespace pylm
