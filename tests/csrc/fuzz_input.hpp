// What fuzzers make of their bytes. A fuzzer is a file with LLVMFuzzerTestOneInput in it, for libFuzzer to call
// or for fuzz_replay.cpp; a check that fails throws, which ends either.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>

#include "check.hpp"

namespace pylm::tests {

// Numbers and texts from the front of the bytes; past their end numbers are 0 and texts empty.
class FuzzInput {
public:
    FuzzInput(const std::uint8_t* data, std::size_t size) noexcept : rest_(data, size) {}

    bool empty() const noexcept { return rest_.empty(); }

    // A number below `bound`, which is 65536 at most.
    std::size_t below(std::size_t bound) noexcept {
        std::size_t value = byte();
        if (bound > 256) value = value << 8 | byte();
        return value % bound;
    }
    bool flip() noexcept { return below(2) != 0; }

    // Up to `max_size` bytes of the input as they stand, or as many of `text_parts()`: each byte is its place.
    std::string text(std::size_t max_size) {
        const bool raw = flip();
        return make_text(raw, below(max_size + 1));
    }
    // The same of all bytes that are left.
    std::string rest() {
        const bool raw = flip();
        return make_text(raw, rest_.size());
    }
    // All bytes that are left, as they stand.
    std::string raw_rest() { return make_text(true, rest_.size()); }

private:
    std::uint8_t byte() noexcept {
        if (rest_.empty()) return 0;
        const std::uint8_t first = rest_.front();
        rest_ = rest_.subspan(1);
        return first;
    }
    std::string make_text(bool raw, std::size_t size) {
        const std::span<const std::uint8_t> bytes = rest_.first(std::min(size, rest_.size()));
        rest_ = rest_.subspan(bytes.size());
        if (raw) return {bytes.begin(), bytes.end()};
        const std::span<const std::string_view> parts = text_parts();
        std::string text;
        for (const std::uint8_t place : bytes) text += parts[place % parts.size()];
        return text;
    }

    std::span<const std::uint8_t> rest_;
};

// Bytes on the heap, and no more than these, so that reading past the end is found.
class ExactText {
public:
    explicit ExactText(std::string_view text) : bytes_(text.begin(), text.end()) {}
    std::string_view view() const noexcept { return {bytes_.data(), bytes_.size()}; }

private:
    std::vector<char> bytes_;
};

}  // namespace pylm::tests
