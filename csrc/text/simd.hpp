// What a machine can do with many bytes at once. Code with several levels gives the same results at each.
#pragma once

#include <cstdint>
#include <vector>

namespace pylm {

enum class SimdLevel : std::uint8_t {
    kNone,    // character by character, no blocks
    kWords,   // eight bytes in a 64-bit register
    kAvx2,
    kAvx512,  // with VBMI2
    kNeon,
};

// Whether this machine has a level.
bool has_simd(SimdLevel level) noexcept;

// The levels that this machine has, slowest first. Never empty.
std::vector<SimdLevel> simd_levels();

// The last of them.
SimdLevel best_simd_level() noexcept;

}  // namespace pylm
