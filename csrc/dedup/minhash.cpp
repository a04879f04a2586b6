#include "dedup/minhash.hpp"

#include <algorithm>
#include <bit>
#include <stdexcept>
#include <utility>

#include "text/words.hpp"

namespace pylm::dedup {
namespace {

constexpr std::uint64_t kMersenne61 = (std::uint64_t{1} << 61) - 1;
constexpr std::uint64_t kLow32 = 0xFFFFFFFF;

// One round more for so many values of a signature.
constexpr std::size_t kBinsARound = 256;

// So many shingles a bin leave none empty, unless most of them are repeats (e^-16 a bin); a text that repeats
// one line a million times should not pay for it with every product.
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

MinHasher::MinHasher(Scheme scheme, std::size_t num_perm, std::uint64_t seed, Permutations given, bool wide,
                     SimdLevel level)
    : scheme_(scheme),
      num_perm_(num_perm),
      wide_(scheme == Scheme::kDatatrove || (wide && scheme != Scheme::kTextDedup)),
      permutations_(std::move(given)),
      kernels_(&minhash_kernels(level)) {
    if (num_perm == 0 || num_perm > kLow32)
        throw std::invalid_argument("num_perm must be at least 1 and below 2^32");
    Random random(seed);
    if (scheme == Scheme::kFast) {
        round_keys_.resize(1 + num_perm / kBinsARound);
        for (std::uint64_t& key : round_keys_) key = random();
        for (std::size_t i = 0; i < num_perm; ++i) {
            permutations_.multipliers.push_back(random() | 1);
            permutations_.increments.push_back(random());
        }
    } else if (scheme == Scheme::kClassic) {
        for (std::size_t i = 0; i < num_perm; ++i) {
            permutations_.multipliers.push_back(1 + random() % (kMersenne61 - 1));
            permutations_.increments.push_back(random() % kMersenne61);
        }
    }
    if (permutations_.multipliers.size() != num_perm || permutations_.increments.size() != num_perm) {
        throw std::invalid_argument(
            "one multiplier and one increment are needed for each of num_perm values");
    }
}

void MinHasher::sign(std::span<const std::uint64_t> shingles, std::span<std::uint64_t> signature,
                     Scratch& scratch) const {
    if (signature.size() != num_perm_) throw std::invalid_argument("a signature has num_perm values");
    std::fill(signature.begin(), signature.end(), no_value());
    if (shingles.empty()) return;
    switch (scheme_) {
        case Scheme::kFast:
            if (wide_) {
                sign_fast(shingles, signature, scratch, scratch.wide);
            } else {
                sign_fast(shingles, signature, scratch, scratch.narrow);
            }
            return;
        case Scheme::kClassic:
            for (const std::uint64_t shingle : shingles) {
                const std::uint64_t x = mod_mersenne61(shingle);
                for (std::size_t k = 0; k < signature.size(); ++k) {
                    const std::uint64_t value =
                        carter_wegman(permutations_.multipliers[k], x, permutations_.increments[k]);
                    signature[k] = std::min(signature[k], wide_ ? value : value >> 29);
                }
            }
            return;
        case Scheme::kTextDedup:
            kernels_->mersenne32({shingles, permutations_.multipliers, permutations_.increments, signature});
            return;
        case Scheme::kDatatrove:
            kernels_->mersenne({shingles, permutations_.multipliers, permutations_.increments, signature});
            return;
    }
}

template <typename Word>
void MinHasher::sign_fast(std::span<const std::uint64_t> shingles, std::span<std::uint64_t> signature,
                          Scratch& scratch, Columns<Word>& columns) const {
    const std::size_t bins = signature.size();
    const std::uint64_t empty = no_value();
    const auto hash = [&](std::uint64_t x, std::size_t round) {
        return words::fold_multiply(x ^ round_keys_[round], words::kMultiplier1);
    };
    const auto bin_of = [&](std::uint64_t h) { return static_cast<std::size_t>(((h >> 32) * bins) >> 32); };
    // The lower half, which says nothing about the bin, comes first; `empty` is no value.
    const auto value_of = [&](std::uint64_t h) {
        return static_cast<Word>(std::min<std::uint64_t>(sizeof(Word) == 8 ? std::rotl(h, 32) : h & kLow32, empty - 1));
    };

    columns.values.resize(std::max(columns.values.size(), shingles.size()));
    for (std::size_t i = 0; i < shingles.size(); ++i) {
        const std::uint64_t h = hash(shingles[i], 0);
        const Word value = value_of(h);
        columns.values[i] = value;
        std::uint64_t& slot = signature[bin_of(h)];
        slot = std::min<std::uint64_t>(slot, value);
    }
    for (std::size_t round = 1; round < round_keys_.size(); ++round) {
        std::vector<std::uint8_t>& filled = scratch.filled;  // before the round
        filled.resize(bins);
        for (std::size_t i = 0; i < bins; ++i) filled[i] = signature[i] != empty;
        for (const std::uint64_t x : shingles) {
            const std::uint64_t h = hash(x, round);
            const std::size_t bin = bin_of(h);
            if (filled[bin] == 0) signature[bin] = std::min<std::uint64_t>(signature[bin], value_of(h));
        }
    }
    scratch.bins.resize(bins);
    std::size_t num_empty = 0;
    for (std::size_t i = 0; i < bins; ++i) {  // without a branch, which could not be predicted
        scratch.bins[num_empty] = i;
        num_empty += signature[i] == empty;
    }
    if (num_empty == 0) return;
    std::size_t num_values = shingles.size();
    if (num_values / kFewRepeats > bins) {
        const auto begin = columns.values.begin();
        const auto end = begin + static_cast<std::ptrdiff_t>(num_values);
        std::sort(begin, end);
        num_values = static_cast<std::size_t>(std::unique(begin, end) - begin);
    }
    fill_empty(signature, std::span(scratch.bins).first(num_empty), {columns.values.data(), num_values}, columns);
}

// Values of the bins that no shingle reached.
template <typename Word>
void MinHasher::fill_empty(std::span<std::uint64_t> signature, std::span<const std::size_t> bins,
                           std::span<const Word> values, Columns<Word>& columns) const {
    columns.multipliers.resize(bins.size());
    columns.increments.resize(bins.size());
    for (std::size_t i = 0; i < bins.size(); ++i) {
        columns.multipliers[i] = static_cast<Word>(permutations_.multipliers[bins[i]]);
        columns.increments[i] = static_cast<Word>(permutations_.increments[bins[i]]);
    }
    const std::uint64_t largest = no_value() - 1;
    columns.least.assign(bins.size(), static_cast<Word>(largest));
    const Permuted<Word> job{values, columns.multipliers, columns.increments, columns.least};
    if constexpr (sizeof(Word) == 8) {
        kernels_->affine64(job);
    } else {
        kernels_->affine32(job);
    }
    for (std::size_t i = 0; i < bins.size(); ++i) signature[bins[i]] = columns.least[i];
}

}  // namespace pylm::dedup
