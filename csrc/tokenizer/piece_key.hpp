// Short pieces of text as numbers, so that two are compared, and one is hashed, without a loop.
#pragma once

#include <array>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstring>

namespace pylm {

// A piece of up to 15 bytes as two words: its bytes, zeros, its size in the last byte. Never zero.
struct PieceKey {
    static constexpr std::size_t kMaxBytes = 15;
    std::uint64_t low = 0;
    std::uint64_t high = 0;
    bool operator==(const PieceKey&) const noexcept = default;

    // The piece is [begin, begin + size) of readable bytes that end at `end`; 1 <= size <= kMaxBytes.
    static PieceKey of(const char* begin, std::size_t size, const char* end) noexcept {
        if (static_cast<std::size_t>(end - begin) >= 16) [[likely]] return of(begin, size);
        std::array<std::uint64_t, 2> words{};
        std::memcpy(words.data(), begin, size);
        return {words[0], words[1] | kParts.last[size]};
    }
    // The same where 16 bytes can be read.
    static PieceKey of(const char* begin, std::size_t size) noexcept {
        static_assert(std::endian::native == std::endian::little, "bytes are masked from the low end");
        std::array<std::uint64_t, 2> words;
        std::memcpy(words.data(), begin, 16);
        return {words[0] & kParts.low[size], (words[1] & kParts.high[size]) | kParts.last[size]};
    }

    // The key of no piece.
    static constexpr PieceKey none() noexcept { return {0, ~std::uint64_t{0}}; }

    std::uint64_t hash() const noexcept {
        __extension__ using Product = unsigned __int128;
        const Product product = static_cast<Product>(low ^ 0x9E3779B97F4A7C15ULL) * (high ^ 0xBF58476D1CE4E5B9ULL);
        // `high` once more, for pieces that make the first factor 0.
        return static_cast<std::uint64_t>(product) ^ static_cast<std::uint64_t>(product >> 64) ^ high;
    }

  private:
    // By size: which bits of the words count, and the last byte.
    struct Parts {
        std::array<std::uint64_t, kMaxBytes + 1> low, high, last;
    };
    static constexpr Parts kParts = [] {
        const auto first = [](std::size_t size) { return (std::uint64_t{1} << (8 * size)) - 1; };
        Parts parts{};
        for (std::size_t i = 0; i <= kMaxBytes; ++i) {
            parts.low[i] = i < 8 ? first(i) : ~std::uint64_t{0};
            parts.high[i] = i < 8 ? 0 : first(i - 8);
            parts.last[i] = std::uint64_t{i} << 56;
        }
        return parts;
    }();
};

}  // namespace pylm
