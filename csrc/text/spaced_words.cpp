#include "text/spaced_words.hpp"

#include <algorithm>
#include <cstdint>

#include "text/unicode.hpp"

namespace pylm {
namespace {

constexpr std::size_t kBlock = 64;  // so that the counts of a block fit a byte, and the loops become vectors

// 1 for white space in ASCII; no branches.
constexpr std::uint8_t is_ascii_space(std::uint8_t byte) noexcept {
    const bool space = byte == ' ';
    const bool control = static_cast<std::uint8_t>(byte - 9) <= 4;     // tab to carriage return
    const bool separator = static_cast<std::uint8_t>(byte - 28) <= 3;  // file to unit separator
    return static_cast<std::uint8_t>(space | control | separator);
}

// 1 for bytes that may begin white space outside ASCII: U+0085 and U+00A0 begin with C2, U+1680 with E1,
// U+2000 to U+205F with E2, U+3000 with E3.
constexpr std::uint8_t may_begin_space(std::uint8_t byte) noexcept {
    return static_cast<std::uint8_t>((byte == 0xC2) | (static_cast<std::uint8_t>(byte - 0xE1) <= 2));
}

}  // namespace

std::size_t count_spaced_words(std::string_view text) noexcept {
    const auto* bytes = reinterpret_cast<const std::uint8_t*>(text.data());
    std::size_t count = 0;
    std::size_t i = 0;
    std::uint8_t after_space = 1;
    while (i < text.size()) {
        if (text.size() - i >= kBlock) {
            const std::uint8_t* block = bytes + i;
            std::uint8_t wide = 0;
            for (std::size_t k = 0; k < kBlock; ++k) wide |= may_begin_space(block[k]);
            if (wide == 0) {
                std::uint8_t begins = after_space & (is_ascii_space(block[0]) ^ 1U);
                for (std::size_t k = 1; k < kBlock; ++k) {
                    begins = static_cast<std::uint8_t>(
                        begins + (is_ascii_space(block[k - 1]) & (is_ascii_space(block[k]) ^ 1U)));
                }
                count += begins;
                after_space = is_ascii_space(block[kBlock - 1]);
                i += kBlock;
                continue;
            }
        }
        // Character by character to the end of the block, or a little further.
        const std::size_t end = std::min(text.size(), i + kBlock);
        while (i < end) {
            std::uint8_t is_space = 0;
            std::size_t size = 1;
            if (may_begin_space(bytes[i]) != 0) {
                const Decoded decoded = decode_utf8(text, i);
                is_space = classify(decoded.point) == kSpace ? 1 : 0;
                size = decoded.size;
            } else {
                is_space = is_ascii_space(bytes[i]);
            }
            count += after_space & (is_space ^ 1U);
            after_space = is_space;
            i += size;
        }
    }
    return count;
}

}  // namespace pylm
