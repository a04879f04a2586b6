// Runs in windows of 64 bytes, as a template over V, the registers of one level:
//   Bits word_bits(p) marks the bytes of runs among the 64 at p;
//   std::size_t write(bits, base, out) writes base + i for every bit i, and returns their number.
// Each level compiles it in a file of its own, for its own instructions, and no function may be shared between
// such files. Include the headers below before switching instructions on.
#pragma once

#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstring>

#include "dedup/word_runs.hpp"

namespace pylm::dedup {

using Bits = std::uint64_t;  // bit i speaks of byte i of a window

inline constexpr std::size_t kWindow = 64;

// Eight at a time, since the loop's end is hard to predict: up to seven entries beyond the last are written.
template <class V>
[[gnu::always_inline]] inline std::size_t write_bits(Bits bits, std::size_t base, std::uint32_t* out) noexcept {
    const auto count = static_cast<std::size_t>(std::popcount(bits));
    for (std::size_t done = 0; done < count; done += 8) {
        for (std::size_t i = 0; i < 8; ++i) {
            out[done + i] = static_cast<std::uint32_t>(base) + static_cast<std::uint32_t>(std::countr_zero(bits));
            bits &= bits - 1;
        }
    }
    return count;
}

template <class V>
[[gnu::always_inline]] inline std::size_t find_runs_in_windows(const char* text, std::size_t size,
                                                               std::uint32_t* borders) noexcept {
    std::size_t count = 0;
    Bits before = 0;  // whether the byte in front of the window belongs to a run
    std::size_t i = 0;
    const auto add = [&](Bits word) {
        count += V::write(word ^ ((word << 1) | before), i, borders + count);
        before = word >> 63;
    };
    for (; i + kWindow <= size; i += kWindow) add(V::word_bits(text + i));
    if (i < size) {
        char padded[kWindow] = {};
        std::memcpy(padded, text + i, size - i);
        add(V::word_bits(padded));
    }
    if (before != 0) borders[count++] = static_cast<std::uint32_t>(size);
    return count;
}

// Defined by the file of each level; null where the compiler does not know its instructions.
FindRuns find_runs_avx2() noexcept;
FindRuns find_runs_avx512() noexcept;
FindRuns find_runs_neon() noexcept;

}  // namespace pylm::dedup
