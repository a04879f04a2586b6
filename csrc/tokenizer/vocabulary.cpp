#include "tokenizer/vocabulary.hpp"

#include <algorithm>
#include <bit>

#include "text/unicode.hpp"

namespace pylm {

TokenIndex::TokenIndex(std::size_t count)
    : slots_(std::bit_ceil(std::max<std::size_t>(16, count * 2))), mask_(slots_.size() - 1) {}

std::string quoted(std::string_view bytes) {
    constexpr std::string_view digits = "0123456789abcdef";
    constexpr std::size_t longest = 60;
    std::string out = "'";
    for (std::size_t i = 0; i < bytes.size();) {
        if (i >= longest) return out + "'...";
        const Decoded c = decode_utf8(bytes, i);
        if (c.size > 1 || (c.point >= 0x20 && c.point < 0x7F)) {
            out += bytes.substr(i, c.size);
        } else {
            const auto byte = static_cast<std::uint8_t>(bytes[i]);
            out += {'\\', 'x', digits[byte >> 4], digits[byte & 15]};
        }
        i += c.size;
    }
    return out + "'";
}

}  // namespace pylm
