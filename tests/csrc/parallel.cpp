// parallel_for: every index once, and the same exception whatever the threads.
#include "parallel.hpp"

#include <stdexcept>
#include <string>
#include <vector>

#include "check.hpp"

namespace pylm::tests {

void test_parallel() {
    for (const unsigned threads : {0U, 1U, 2U, 4U, 300U}) {
        for (const std::size_t count : {std::size_t{0}, std::size_t{1}, std::size_t{5}, std::size_t{1000}}) {
            std::vector<int> calls(count, 0);
            parallel_for(count, threads, [&](std::size_t i) { ++calls[i]; });
            check(calls == std::vector<int>(count, 1), "parallel_for calls every index once");
        }
        for (std::size_t repeat = 0; repeat < 20; ++repeat) {
            std::vector<int> calls(500, 0);
            std::string message;
            try {
                parallel_for(calls.size(), threads, [&](std::size_t i) {
                    ++calls[i];
                    if (i >= 37 && i % 2 == 1) throw std::invalid_argument(std::to_string(i));
                });
            } catch (const std::invalid_argument& error) {
                message = error.what();
            }
            check(message == "37", "parallel_for rethrows the exception of the lowest index, got " + message);
            for (std::size_t i = 0; i < calls.size(); ++i) {
                check(calls[i] == 1 || (i > 37 && calls[i] == 0),
                      "no task is left out before a failure, or runs twice");
            }
        }
    }
}

}  // namespace pylm::tests
