#include "dedup/minhash.hpp"

#include <algorithm>
#include <stdexcept>
#include <utility>

#include "text/words.hpp"

namespace pylm::dedup {
namespace {

constexpr std::uint64_t kMersenne61 = (std::uint64_t{1} << 61) - 1;
constexpr std::uint64_t kLow32 = 0xFFFFFFFF;

// So many shingles a bin leave none empty, unless most of them are repeats (e^-16 a bin); a text that repeats
// one line a million times should not pay for it in every round.
constexpr std::size_t kFewRepeats = 16;

// SplitMix64 (Steele, Lea, Flood 2014): the stream of constants that a seed stands for.
class Random {
public:
    explicit Random(std::uint64_t seed) noexcept : state_(seed) {}
    std::uint64_t operator()() noexcept {
        state_ += 0x9E3779B97F4A7C15ULL;
        std::uint64_t x = state_;
        x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9ULL;
        x = (x ^ (x >> 27)) * 0x94D049BB133111EBULL;
        return x ^ (x >> 31);
    }

private:
    std::uint64_t state_;
};

std::uint64_t mod_mersenne61(std::uint64_t x) noexcept {
    x = (x & kMersenne61) + (x >> 61);
    return x >= kMersenne61 ? x - kMersenne61 : x;
}

// (a x + b) mod 2^61 - 1 without overflow.
std::uint64_t carter_wegman(std::uint64_t a, std::uint64_t x, std::uint64_t b) noexcept {
    __extension__ using Wide = unsigned __int128;
    const Wide product = static_cast<Wide>(a) * x + b;
    return mod_mersenne61(static_cast<std::uint64_t>(product & kMersenne61) +
                          static_cast<std::uint64_t>(product >> 61));
}

}  // namespace

MinHasher::MinHasher(Scheme scheme, std::size_t num_perm, std::uint64_t seed, Permutations given)
    : scheme_(scheme), num_perm_(num_perm), permutations_(std::move(given)) {
    if (num_perm == 0 || num_perm > kLow32)
        throw std::invalid_argument("num_perm must be at least 1 and below 2^32");
    Random random(seed);
    if (scheme == Scheme::kFast) {
        round_keys_.resize(2 * num_perm);
        for (std::uint64_t& key : round_keys_) key = random();
    } else if (scheme == Scheme::kClassic) {
        for (std::size_t i = 0; i < num_perm; ++i) {
            permutations_.multipliers.push_back(1 + random() % (kMersenne61 - 1));
            permutations_.increments.push_back(random() % kMersenne61);
        }
    }
    if (scheme != Scheme::kFast &&
        (permutations_.multipliers.size() != num_perm || permutations_.increments.size() != num_perm)) {
        throw std::invalid_argument(
            "one multiplier and one increment are needed for each of num_perm values");
    }
}

void MinHasher::sign(std::span<const std::uint64_t> shingles, std::span<std::uint64_t> signature,
                     Scratch& scratch) const {
    if (signature.size() != num_perm_) throw std::invalid_argument("a signature has num_perm values");
    std::fill(signature.begin(), signature.end(), no_value());
    if (shingles.empty()) return;
    if (scheme_ == Scheme::kFast) {
        sign_fast(shingles, signature, scratch);
        return;
    }
    const std::uint64_t* a = permutations_.multipliers.data();
    const std::uint64_t* b = permutations_.increments.data();
    const auto keep_least = [&](auto value) {
        for (const std::uint64_t x : shingles) {
            for (std::size_t k = 0; k < signature.size(); ++k) {
                signature[k] = std::min(signature[k], value(x, a[k], b[k]));
            }
        }
    };
    if (scheme_ == Scheme::kClassic) {
        keep_least([](std::uint64_t x, std::uint64_t m, std::uint64_t c) {
            return carter_wegman(m, mod_mersenne61(x), c) >> 29;
        });
    } else if (scheme_ == Scheme::kTextDedup) {
        keep_least([](std::uint64_t x, std::uint64_t m, std::uint64_t c) {
            return mod_mersenne61(x * m + c) & kLow32;
        });
    } else {
        keep_least(
            [](std::uint64_t x, std::uint64_t m, std::uint64_t c) { return mod_mersenne61(x * m + c); });
    }
}

void MinHasher::sign_fast(std::span<const std::uint64_t> shingles, std::span<std::uint64_t> signature,
                          Scratch& scratch) const {
    const std::size_t bins = signature.size();
    const std::uint64_t empty = no_value();
    const auto hash = [&](std::uint64_t x, std::size_t round) {
        return words::fold_multiply(x ^ round_keys_[round], words::kMultiplier1);
    };
    const auto bin_of = [&](std::uint64_t h) { return static_cast<std::size_t>(((h >> 32) * bins) >> 32); };
    const auto value_of = [&](std::uint64_t h) { return std::min(h & kLow32, empty - 1); };

    for (const std::uint64_t x : shingles) {  // round 0: all bins are empty
        const std::uint64_t h = hash(x, 0);
        std::uint64_t& slot = signature[bin_of(h)];
        slot = std::min(slot, value_of(h));
    }
    std::vector<std::uint8_t>& filled = scratch.filled;  // before the round
    std::vector<std::size_t>& fresh = scratch.fresh;     // reached in the round
    filled.assign(bins, 0);
    std::size_t num_filled = 0;
    for (std::size_t i = 0; i < bins; ++i) num_filled += filled[i] = signature[i] != empty;
    if (num_filled < bins && shingles.size() / kFewRepeats > bins) {
        scratch.distinct.assign(shingles.begin(), shingles.end());
        std::sort(scratch.distinct.begin(), scratch.distinct.end());
        scratch.distinct.erase(std::unique(scratch.distinct.begin(), scratch.distinct.end()),
                               scratch.distinct.end());
        shingles = scratch.distinct;
    }
    for (std::size_t round = 1; round < bins && num_filled < bins; ++round) {
        fresh.clear();
        for (const std::uint64_t x : shingles) {
            const std::uint64_t h = hash(x, round);
            const std::size_t bin = bin_of(h);
            if (filled[bin] != 0) continue;
            if (signature[bin] == empty) fresh.push_back(bin);
            signature[bin] = std::min(signature[bin], value_of(h));
        }
        for (const std::size_t bin : fresh) filled[bin] = 1;
        num_filled += fresh.size();
    }
    for (std::size_t bin = 0; bin < bins; ++bin) {
        if (signature[bin] != empty) continue;
        for (const std::uint64_t x : shingles)
            signature[bin] = std::min(signature[bin], value_of(hash(x, bins + bin)));
    }
}

}  // namespace pylm::dedup
