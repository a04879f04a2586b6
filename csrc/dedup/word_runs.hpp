// Where words may be: the runs of ASCII letters, digits and bytes beyond ASCII in a text.
#pragma once

#include <cstddef>
#include <cstdint>

#include "text/simd.hpp"

namespace pylm::dedup {

inline constexpr std::size_t kRunsBlock = 4096;          // bytes of text at a time
inline constexpr std::size_t kRunsSpace = kRunsBlock + 64;  // borders: room for whole registers beyond the last

// Write the borders of all runs of text[0, size), in order, as distances from `text`: start, end, start, ...;
// a run that reaches the end ends at `size`. Returns their number. `size` is at most kRunsBlock, `borders` has
// kRunsSpace entries. O(size).
using FindRuns = std::size_t (*)(const char* text, std::size_t size, std::uint32_t* borders) noexcept;

// The function of a level that this machine has; throws std::invalid_argument for others.
FindRuns find_runs(SimdLevel level);

}  // namespace pylm::dedup
