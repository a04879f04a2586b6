// Small non-cryptographic hashes for tables in memory. The tables of tokenizer/section_file.hpp are written as they are:
// another hash is another version of that form. Nothing else may write them to disk.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <string_view>

namespace pylm {

// SplitMix64's finaliser (Steele, Lea, Flood 2014): a bijection with good avalanche.
inline std::uint64_t mix64(std::uint64_t x) noexcept {
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9ULL;
    x = (x ^ (x >> 27)) * 0x94D049BB133111EBULL;
    return x ^ (x >> 31);
}

// Eight bytes at a time through mix64.
inline std::uint64_t hash_bytes(std::string_view bytes) noexcept {
    std::uint64_t state = 0x9E3779B97F4A7C15ULL ^ bytes.size();
    std::size_t i = 0;
    for (; i + 8 <= bytes.size(); i += 8) {
        std::uint64_t word;
        std::memcpy(&word, bytes.data() + i, 8);
        state = mix64(state ^ word) + 0x9E3779B97F4A7C15ULL;
    }
    std::uint64_t tail = 0;
    std::memcpy(&tail, bytes.data() + i, bytes.size() - i);
    return mix64(state ^ tail);
}

}  // namespace pylm
