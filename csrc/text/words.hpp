// What a word is, and a hash of words that is the same on every machine and in every version.
//
// A word is a longest run of letters, marks, numbers and joiners; in scripts that put no spaces between words
// (Han, kana, Thai...) every character is one. Everything else, and every invalid byte, only separates. Case
// is folded to simple lower case.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <string>
#include <string_view>

#include "text/unicode.hpp"
#include "text/words_table.hpp"

namespace pylm::words {

enum Flag : std::uint8_t {
    kWord = 1,
    kUnspaced = 2,
    kTerminal = 4,
    kPunctuation = 8,
    kLetter = 16,
    kSpace = 32,
    kLineEnd = 64,
    kAlphanumeric = 128,
};

// Flags of a code point; 0 beyond U+10FFFF. O(1).
inline std::uint8_t flags(char32_t point) noexcept {
    if (point > 0x10FFFF) return 0;
    return words_table::flags[words_table::flag_block[point >> 8] * std::size_t{256} + (point & 0xFF)];
}

// Simple lower case of a code point. O(1).
inline char32_t lower(char32_t point) noexcept {
    if (point > 0x10FFFF) return point;
    const std::uint8_t kind =
        words_table::lower[words_table::lower_block[point >> 8] * std::size_t{256} + (point & 0xFF)];
    return static_cast<char32_t>(static_cast<std::int32_t>(point) + words_table::lower_delta[kind]);
}

// Append a code point as UTF-8.
void append_utf8(char32_t point, std::string& bytes);

// High and low half of the 128-bit product, folded (Carter-Wegman style mixing as in wyhash; Yi 2019).
inline std::uint64_t fold_multiply(std::uint64_t a, std::uint64_t b) noexcept {
    __extension__ using Wide = unsigned __int128;
    const Wide product = static_cast<Wide>(a) * b;
    return static_cast<std::uint64_t>(product) ^ static_cast<std::uint64_t>(product >> 64);
}

inline constexpr std::uint64_t kMultiplier1 = 0xD6E8FEB86659FD93ULL;  // odd, no structure
inline constexpr std::uint64_t kMultiplier2 = 0x9E3779B97F4A7C15ULL;  // odd, 2^64 / golden ratio

namespace detail {

inline std::uint64_t load8(const char* p) noexcept {
    std::uint64_t value;
    std::memcpy(&value, p, 8);
    return value;
}

// The `size` (1 to 8) bytes at p, zeros above; reads up to 8 bytes where `limit` allows.
inline std::uint64_t load_tail(const char* p, std::size_t size, const char* limit) noexcept {
    if (limit - p >= 8) return load8(p) & (~std::uint64_t{0} >> (64 - 8 * size));
    std::uint64_t value = 0;
    std::memcpy(&value, p, size);
    return value;
}

// ASCII letters to lower case, eight at a time; valid for letters and digits only (bit 0x40 tells them
// apart).
inline std::uint64_t fold_case(std::uint64_t bytes) noexcept {
    return bytes | ((bytes & 0x4040404040404040ULL) >> 1);
}

}  // namespace detail

// Hash of a word's bytes, which are in lower case. `limit` is the end of readable memory. O(size).
inline std::uint64_t hash_word(const char* p, std::size_t size, const char* limit) noexcept {
    std::uint64_t state = kMultiplier2 * size;
    for (; size > 8; p += 8, size -= 8) state = fold_multiply(state ^ detail::load8(p), kMultiplier1);
    return fold_multiply(state ^ detail::load_tail(p, size, limit) ^ kMultiplier1, kMultiplier2);
}

}  // namespace pylm::words
