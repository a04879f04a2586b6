#include "dedup/bloom.hpp"

#include "dedup/xxhash.hpp"
#include "text/words.hpp"

namespace pylm::dedup {
namespace {

constexpr std::uint64_t kSecondSeed = 0x9E3779B97F4A7C15ULL;

// x of [0, 2^64) to [0, size), evenly (Lemire 2019).
std::uint64_t scale(std::uint64_t x, std::uint64_t size) noexcept {
    __extension__ using Wide = unsigned __int128;
    return static_cast<std::uint64_t>((static_cast<Wide>(x) * size) >> 64);
}

}  // namespace

Hash128 hash128(std::string_view text) noexcept { return {xxh3_64(text, 0), xxh3_64(text, kSecondSeed)}; }

bool visit_bloom(std::span<std::uint64_t> words, std::size_t num_hashes, const Hash128& hash, bool add) noexcept {
    const std::uint64_t num_bits = 64 * words.size();
    // A product for each place: sums alone, mapped by their upper bits, would lie in arithmetic progressions,
    // which err more often than independent places do where the filter is small.
    std::uint64_t place = hash.first;
    bool member = true;
    for (std::size_t i = 0; i < num_hashes; ++i) {
        const std::uint64_t bit = scale(words::fold_multiply(place, hash.second | 1), num_bits);
        const std::uint64_t mask = std::uint64_t{1} << (bit & 63);
        member = member && (words[bit >> 6] & mask) != 0;
        if (add) words[bit >> 6] |= mask;
        place += kSecondSeed;
    }
    return member;
}

}  // namespace pylm::dedup
