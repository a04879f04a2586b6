#include "text/spaced_words.hpp"

#include <algorithm>
#include <bit>
#include <cstdint>
#include <cstring>

#include "text/unicode.hpp"

namespace pylm {
namespace {

static_assert(std::endian::native == std::endian::little, "the first byte of a text is a word's lowest");

constexpr std::uint64_t kOnes = 0x0101010101010101U;
constexpr std::uint64_t kHighs = 0x8080808080808080U;

// The high bit of every byte that is white space in ASCII: 9 to 13, 28 to 32. No carry leaves a byte of 7 bits.
std::uint64_t ascii_spaces(std::uint64_t bytes) noexcept {
    const std::uint64_t low = bytes & ~kHighs;
    const std::uint64_t controls = (low + kOnes * (128 - 9)) & ~(low + kOnes * (128 - 14));
    const std::uint64_t others = (low + kOnes * (128 - 28)) & ~(low + kOnes * (128 - 33));
    return (controls | others) & ~bytes & kHighs;
}

bool is_ascii_space(std::uint8_t byte) noexcept {
    return static_cast<std::uint8_t>(byte - 9) <= 4 || static_cast<std::uint8_t>(byte - 28) <= 4;
}

// What may begin white space outside ASCII: U+0085 and U+00A0 begin with C2, U+1680 with E1, U+2000 to U+205F
// with E2, U+3000 with E3.
bool may_begin_space(std::uint8_t byte) noexcept {
    return byte == 0xC2 || static_cast<std::uint8_t>(byte - 0xE1) <= 2;
}

}  // namespace

std::size_t count_spaced_words(std::string_view text) noexcept {
    constexpr std::size_t kStep = sizeof(std::uint64_t);
    const auto* bytes = reinterpret_cast<const std::uint8_t*>(text.data());
    std::size_t count = 0;
    std::size_t i = 0;
    std::uint64_t after_space = 1;
    while (i < text.size()) {
        if (text.size() - i >= kStep) {
            std::uint64_t word = 0;
            std::memcpy(&word, bytes + i, kStep);
            if ((word & kHighs) == 0 || std::none_of(bytes + i, bytes + i + kStep, may_begin_space)) {
                const std::uint64_t spaces = ascii_spaces(word) >> 7;
                count += (((spaces << 8) | after_space) & ~spaces & kOnes) * kOnes >> 56;
                after_space = spaces >> 56;
                i += kStep;
                continue;
            }
        }
        // Character by character to the end of the step, or a little further.
        const std::size_t end = std::min(text.size(), i + kStep);
        while (i < end) {
            bool is_space = false;
            std::size_t size = 1;
            if (may_begin_space(bytes[i])) {
                const Decoded decoded = decode_utf8(text, i);
                is_space = classify(decoded.point) == kSpace;
                size = decoded.size;
            } else {
                is_space = is_ascii_space(bytes[i]);
            }
            count += after_space != 0 && !is_space ? 1 : 0;
            after_space = is_space ? 1 : 0;
            i += size;
        }
    }
    return count;
}

}  // namespace pylm
