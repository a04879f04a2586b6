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
        static_assert(std::endian::native == std::endian::little, "bytes are masked from the low end");
        const std::uint64_t last = static_cast<std::uint64_t>(size) << 56;
        std::array<std::uint64_t, 2> words;
        if (static_cast<std::size_t>(end - begin) >= 16) [[likely]] {
            std::memcpy(words.data(), begin, 16);
            return {words[0] & kMasks[size].low, (words[1] & kMasks[size].high) | last};
        }
        words = {};
        std::memcpy(words.data(), begin, size);
        return {words[0], words[1] | last};
    }

    std::uint64_t hash() const noexcept {
        __extension__ using Product = unsigned __int128;
        const Product product = static_cast<Product>(low ^ 0x9E3779B97F4A7C15ULL) * (high ^ 0xBF58476D1CE4E5B9ULL);
        // `high` once more, for pieces that make the first factor 0.
        return static_cast<std::uint64_t>(product) ^ static_cast<std::uint64_t>(product >> 64) ^ high;
    }

  private:
    struct Mask {
        std::uint64_t low, high;
    };
    static constexpr std::array<Mask, 16> kMasks = [] {
        const auto first = [](std::size_t size) { return (std::uint64_t{1} << (8 * size)) - 1; };
        std::array<Mask, 16> masks{};
        for (std::size_t i = 0; i < 16; ++i)
            masks[i] = i < 8 ? Mask{first(i), 0} : Mask{~std::uint64_t{0}, first(i - 8)};
        return masks;
    }();
};

}  // namespace pylm
