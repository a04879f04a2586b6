// UTF-8 decoding and the classes of code points that tokenizer patterns ask for.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string_view>

#include "text/unicode_table.hpp"

namespace pylm {

// Classes of code points, as bits so that patterns can ask for several at once. Every code point has at most
// one; control, format, private, surrogate and unassigned ones have none. Unicode 18.0.0.
enum CharClass : std::uint8_t {
    kUpper = 1,     // Lu, Lt
    kLower = 2,     // Ll
    kCaseless = 4,  // Lm, Lo
    kMark = 8,      // M
    kNumber = 16,   // N
    kPunctuation = 32,  // P
    kSymbol = 64,   // S
    kSpace = 128,   // White_Space
};
inline constexpr std::uint8_t kLetter = kUpper | kLower | kCaseless;

// Class of an ASCII character.
inline std::uint8_t classify_ascii(std::uint8_t byte) noexcept { return unicode_table::class_of[byte]; }

// Class of a code point; 0 beyond U+10FFFF. O(1), no branches on data.
inline std::uint8_t classify(char32_t point) noexcept {
    if (point > 0x10FFFF) return 0;
    const std::size_t block = unicode_table::block_of[point >> 8];
    return unicode_table::class_of[block * 256 + (point & 0xFF)];
}

struct Decoded {
    char32_t point;     // U+FFFD where the bytes are no character
    std::uint32_t size; // bytes consumed, 1 to 4; 1 for an invalid byte
};

// Decode the character that starts at `position` < text.size(). Never reads past the end. Overlong forms,
// surrogates and truncated sequences are invalid, byte by byte.
inline Decoded decode_utf8(std::string_view text, std::size_t position) noexcept {
    const auto byte = [&](std::size_t i) { return static_cast<std::uint8_t>(text[position + i]); };
    const std::uint32_t first = byte(0);
    const std::size_t left = text.size() - position;
    constexpr Decoded invalid{0xFFFD, 1};
    const auto continues = [&](std::size_t i) { return (byte(i) & 0xC0U) == 0x80U; };
    if (first < 0x80) return {first, 1};
    if (first < 0xC2) return invalid;
    if (first < 0xE0) {
        if (left < 2 || !continues(1)) return invalid;
        return {((first & 0x1FU) << 6) | (byte(1) & 0x3FU), 2};
    }
    if (first < 0xF0) {
        if (left < 3 || !continues(1) || !continues(2)) return invalid;
        const std::uint32_t point = ((first & 0x0FU) << 12) | ((byte(1) & 0x3FU) << 6) | (byte(2) & 0x3FU);
        if (point < 0x800 || (point >= 0xD800 && point < 0xE000)) return invalid;
        return {point, 3};
    }
    if (first < 0xF5) {
        if (left < 4 || !continues(1) || !continues(2) || !continues(3)) return invalid;
        const std::uint32_t point = ((first & 0x07U) << 18) | ((byte(1) & 0x3FU) << 12) |
                                    ((byte(2) & 0x3FU) << 6) | (byte(3) & 0x3FU);
        if (point < 0x10000 || point > 0x10FFFF) return invalid;
        return {point, 4};
    }
    return invalid;
}

}  // namespace pylm
