// Windows in eight 64-bit registers, and no windows at all: for every machine.
#include <bit>
#include <cstring>

#include "tokenizer/pretokenize_block.hpp"
#include "tokenizer/pretokenize_rules.hpp"

namespace pylm::pretokenize {
namespace {

// Eight bytes in each word, the first lowest on every machine.
struct Words {
    static constexpr std::uint64_t kOnes = 0x0101010101010101ULL;
    static constexpr std::uint64_t kHigh = 0x8080808080808080ULL;

    std::uint64_t word[8];

    static Words load(const char* data) noexcept { return load(data, kWindow); }
    static Words load(const char* data, std::size_t size) noexcept {
        Words words = {};
        if constexpr (std::endian::native == std::endian::little) {
            std::memcpy(words.word, data, size);
        } else {
            for (std::size_t i = 0; i < size; ++i)
                words.word[i / 8] |= std::uint64_t{static_cast<std::uint8_t>(data[i])} << (i % 8 * 8);
        }
        return words;
    }
    // The high bit of each byte. Multiplying moves the eight bits side by side into the highest byte.
    template <class Test>
    [[gnu::always_inline]] Bits mask(Test test) const noexcept {
        Bits bits = 0;
        for (std::size_t i = 0; i < 8; ++i) {
            const std::uint64_t flags = (test(word[i]) & kHigh) >> 7;
            bits |= (flags * 0x0102040810204080ULL) >> 56 << (i * 8);
        }
        return bits;
    }
    Bits high() const noexcept {
        return mask([](std::uint64_t x) { return x; });
    }
    Bits equals(char byte) const noexcept { return in_range(byte, byte); }
    // Sums of seven-bit numbers carry into the high bit, never into the next byte.
    [[gnu::always_inline]] Bits in_range(char first, char last) const noexcept {
        const std::uint64_t reach = kOnes * static_cast<std::uint64_t>(0x80 - (first & 0x7F));
        const std::uint64_t pass = kOnes * static_cast<std::uint64_t>(0x7F - (last & 0x7F));
        const std::uint64_t flip = (first & 0x80) != 0 ? 0 : ~std::uint64_t{0};
        return mask([=](std::uint64_t x) {
            const std::uint64_t seven = x & ~kHigh;
            return (seven + reach) & ~(seven + pass) & (x ^ flip);
        });
    }
    Words lower_case() const noexcept {
        Words words = *this;
        for (std::uint64_t& x : words.word) x |= kOnes * 0x20;
        return words;
    }
    static std::size_t write(Bits bits, std::uint32_t base, std::uint32_t* out) noexcept {
        return write_bits<Words>(bits, base, out);
    }
};

template <Pattern P>
struct WordsMachine {
    static std::size_t cut(std::string_view text, std::size_t position,
                           std::span<std::uint32_t> ends) noexcept {
        return cut_windows<P, Words>(text, position, ends);
    }
};

template <Pattern P>
struct PlainMachine {
    static std::size_t cut(std::string_view text, std::size_t position,
                           std::span<std::uint32_t> ends) noexcept {
        const std::size_t base = position;
        std::size_t count = 0;
        while (count < ends.size() && position < text.size()) {
            position = end_piece<P>(text, position);
            if (position - base > std::numeric_limits<std::uint32_t>::max()) break;
            ends[count++] = static_cast<std::uint32_t>(position - base);
        }
        return count;
    }
};

}  // namespace

CutFunction find_cut_none(Pattern pattern) noexcept {
    return pattern == Pattern::kWhole ? PlainMachine<Pattern::kWhole>::cut : select<PlainMachine>(pattern);
}
CutFunction find_cut_words(Pattern pattern) noexcept { return select<WordsMachine>(pattern); }

}  // namespace pylm::pretokenize
