#include "dedup/word_runs.hpp"

#include <cstring>
#include <stdexcept>

#include "dedup/word_runs_block.hpp"

namespace pylm::dedup {
namespace {

std::size_t find_runs_none(const char* text, std::size_t size, std::uint32_t* borders) noexcept {
    const auto in_run = [](char c) {
        return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') ||
               static_cast<std::uint8_t>(c) >= 0x80;
    };
    std::size_t count = 0;
    bool inside = false;
    for (std::size_t i = 0; i < size; ++i) {
        if (in_run(text[i]) == inside) continue;
        borders[count++] = static_cast<std::uint32_t>(i);
        inside = !inside;
    }
    if (inside) borders[count++] = static_cast<std::uint32_t>(size);
    return count;
}

struct Words {
    static std::size_t write(Bits bits, std::size_t base, std::uint32_t* out) noexcept {
        return write_bits<Words>(bits, base, out);
    }
    // The top bit of each byte says what holds; sums of seven bits never reach the next byte.
    static Bits word_bits(const char* p) noexcept {
        constexpr std::uint64_t ones = 0x0101010101010101ULL;
        constexpr std::uint64_t tops = 0x80 * ones;
        Bits bits = 0;
        for (std::size_t i = 0; i < kWindow; i += 8) {
            std::uint64_t bytes;
            std::memcpy(&bytes, p + i, 8);
            const std::uint64_t low = bytes & ~tops;
            const std::uint64_t lower = low | 0x20 * ones;
            const std::uint64_t letter = (lower + (0x80 - 'a') * ones) & ~(lower + (0x7F - 'z') * ones);
            const std::uint64_t digit = (low + (0x80 - '0') * ones) & ~(low + (0x7F - '9') * ones);
            const std::uint64_t marks = ((letter | digit | bytes) & tops) >> 7;
            bits |= ((marks * 0x0102040810204080ULL) >> 56) << i;
        }
        return bits;
    }
};

std::size_t find_runs_words(const char* text, std::size_t size, std::uint32_t* borders) noexcept {
    return find_runs_in_windows<Words>(text, size, borders);
}

}  // namespace

FindRuns find_runs(SimdLevel level) {
    if (!has_simd(level)) throw std::invalid_argument("this machine does not have the SIMD level asked for");
    switch (level) {
        case SimdLevel::kNone: return find_runs_none;
        case SimdLevel::kWords: return find_runs_words;
        case SimdLevel::kAvx2: return find_runs_avx2();
        case SimdLevel::kAvx512: return find_runs_avx512();
        case SimdLevel::kNeon: return find_runs_neon();
    }
    throw std::invalid_argument("no such SIMD level");
}

}  // namespace pylm::dedup
