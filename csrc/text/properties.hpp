// Properties of code points that added tokens ask for.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <string_view>

#include "text/property_table.hpp"
#include "text/unicode.hpp"

namespace pylm {

enum CharProperty : std::uint8_t { kWordChar = 1 };

// True when the code point has the property; O(1). Beyond U+10FFFF none has any.
inline bool has_property(char32_t point, CharProperty property) noexcept {
    if (point > 0x10FFFF) return false;
    const std::size_t block = property_table::block_of[point >> 8];
    return (property_table::bits_of[block * 256 + (point & 0xFF)] & property) != 0;
}

// The first place at or after `begin` that is no ASCII, eight bytes at a time.
inline std::size_t skip_ascii(std::string_view text, std::size_t begin) noexcept {
    for (; text.size() - begin >= 8; begin += 8) {
        std::uint64_t word;
        std::memcpy(&word, text.data() + begin, 8);
        if ((word & 0x8080808080808080ULL) != 0) break;
    }
    while (begin < text.size() && static_cast<std::uint8_t>(text[begin]) < 0x80) ++begin;
    return begin;
}

// Where the last character before `end` > 0 begins; a byte that is no UTF-8 counts as one.
inline std::size_t previous_start(std::string_view text, std::size_t end) noexcept {
    for (std::size_t size = 2; size <= 4 && size <= end; ++size) {
        if (static_cast<std::uint8_t>(text[end - 1]) < 0x80) break;
        if (decode_utf8(text, end - size).size == size) return end - size;
    }
    return end - 1;
}

}  // namespace pylm
