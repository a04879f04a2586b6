// MinHash signatures of shingle sets: the share of equal values of two signatures estimates the Jaccard
// similarity of the sets.
//
// kFast is the fast similarity sketch of Dahlgaard, Knudsen, Thorup (FOCS 2017, arXiv:1704.04370). With t
// values a signature, round i = 0, 1, ..., t-1 sends every shingle x to the bin h_i(x), rounds t + j send all
// shingles to bin j; each time x carries the value v_i(x). A bin keeps the smallest value of the first round
// that reaches it; the work stops when no bin is empty, in most documents of 600 shingles or more after two
// or three rounds, and after O(n + t log t) expected steps always (n distinct shingles).
//   Unbiased: fix a bin, and give every x the key (first round that sends x to this bin, its value there),
//   compared round first. For fully random h and v the keys are independent and equally distributed over x,
//   so the x in A u B with the smallest key is uniform in A u B. It decides the bin of both sketches if it is
//   in A n B, and only one of them otherwise; hence P[equal] = |A n B| / |A u B| (for distinct values v).
//   Stopping early leaves out only larger keys.
//
// kClassic is t independent hashes (a x + b) mod 2^61 - 1 (Broder 1997; Carter, Wegman 1979), kept as their
// upper 32 bits. kTextDedup and kDatatrove repeat the arithmetic of those tools bit by bit.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "dedup/shingle.hpp"

namespace pylm::dedup {

enum class Scheme { kFast, kClassic, kTextDedup, kDatatrove };

// Multipliers and increments of kTextDedup and kDatatrove, one each a value; other schemes draw their own.
struct Permutations {
    std::vector<std::uint64_t> multipliers;
    std::vector<std::uint64_t> increments;
};

// Immutable after construction; shared by threads, each with its own scratch.
class MinHasher {
public:
    struct Scratch {
        std::vector<std::uint8_t> filled;
        std::vector<std::size_t> fresh;
        std::vector<std::uint64_t> distinct;
    };

    // Throws std::invalid_argument when num_perm is 0 or the permutations do not fit.
    MinHasher(Scheme scheme, std::size_t num_perm, std::uint64_t seed, Permutations given = {});

    std::size_t num_perm() const noexcept { return num_perm_; }

    // Values fill 32 bits, or 61 for kDatatrove; `no_value` fills the signatures of texts without shingles.
    std::uint64_t no_value() const noexcept {
        return scheme_ == Scheme::kDatatrove ? ~std::uint64_t{0} : 0xFFFFFFFF;
    }
    bool wide() const noexcept { return scheme_ == Scheme::kDatatrove; }

    // Write the signature of a set of shingles (repeats do not matter) to `signature` (num_perm() long).
    // O(shingles) for kFast, O(shingles * num_perm) otherwise.
    void sign(std::span<const std::uint64_t> shingles, std::span<std::uint64_t> signature,
              Scratch& scratch) const;

private:
    void sign_fast(std::span<const std::uint64_t> shingles, std::span<std::uint64_t> signature,
                   Scratch& scratch) const;

    Scheme scheme_;
    std::size_t num_perm_;
    Permutations permutations_;
    std::vector<std::uint64_t> round_keys_;  // kFast: one a round, 2 * num_perm of them
};

}  // namespace pylm::dedup
