// MinHash signatures of shingle sets: the share of equal values of two signatures estimates the Jaccard
// similarity of the sets.
//
// kFast is one permutation hashing, with hashes of their own for the bins that stay empty; it is the fast
// similarity sketch of Dahlgaard, Knudsen, Thorup (FOCS 2017, arXiv:1704.04370) with another number of rounds.
// With t values a signature, in each of R = 1 + t / 256 rounds every shingle x goes to one bin, as h_i(x) says,
// with the value v_i(x). A bin keeps the smallest value of the first round that reaches it. A bin that none
// reaches keeps the smallest a_j y + b_j over all shingles, y their value in round 0.
//   Unbiased: fix a bin, and give every x the key (first round that sends x to this bin, its value there),
//   compared round first. For fully random h and v the keys are independent and equally distributed over x,
//   so the x in A u B with the smallest key is uniform in A u B. It decides the bin of both sketches if it is
//   in A n B, and only one of them otherwise; hence P[equal] = |A n B| / |A u B| (for distinct values v).
//   Whether a bin is empty depends on h alone, so that y is still random there.
//   R: after R rounds of n shingles t e^(-Rn/t) bins are empty, and the products for them are t^2 / (e R) at most:
//   less than 100 t whatever n, so that a text costs O(n R + 100 t), and long texts O(n).
//
// kClassic is t independent hashes (a x + b) mod 2^61 - 1 (Broder 1997; Carter, Wegman 1979), kept as their
// upper 32 bits where signatures have 32. kTextDedup and kDatatrove repeat the arithmetic of those tools bit by bit.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "dedup/minhash_kernels.hpp"
#include "text/simd.hpp"

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
    template <typename Word>
    struct Columns {
        std::vector<Word> values, multipliers, increments, least;
    };
    struct Scratch {
        std::vector<std::uint8_t> filled;
        std::vector<std::size_t> bins;
        Columns<std::uint32_t> narrow;
        Columns<std::uint64_t> wide;
    };

    // `wide` values fill 64 bits (61 for kClassic), others 32; kTextDedup always has 32, kDatatrove 61. The level
    // changes nothing but the time. Throws std::invalid_argument when num_perm is 0, the permutations do not fit
    // or this machine does not have the level.
    MinHasher(Scheme scheme, std::size_t num_perm, std::uint64_t seed, Permutations given = {}, bool wide = false,
              SimdLevel level = best_simd_level());

    std::size_t num_perm() const noexcept { return num_perm_; }
    bool wide() const noexcept { return wide_; }

    // Fills the signatures of texts without shingles; no other value is as large.
    std::uint64_t no_value() const noexcept { return wide_ ? ~std::uint64_t{0} : 0xFFFFFFFF; }

    // Write the signature of a set of shingles (repeats do not matter) to `signature` (num_perm() long).
    // O(shingles + num_perm) for kFast, O(shingles * num_perm) otherwise.
    void sign(std::span<const std::uint64_t> shingles, std::span<std::uint64_t> signature,
              Scratch& scratch) const;

private:
    template <typename Word>
    void sign_fast(std::span<const std::uint64_t> shingles, std::span<std::uint64_t> signature, Scratch& scratch,
                   Columns<Word>& columns) const;
    template <typename Word>
    void fill_empty(std::span<std::uint64_t> signature, std::span<const std::size_t> bins,
                    std::span<const Word> values, Columns<Word>& columns) const;

    Scheme scheme_;
    std::size_t num_perm_;
    bool wide_;
    Permutations permutations_;              // kFast: of the bins that stay empty
    std::vector<std::uint64_t> round_keys_;  // kFast
    const MinHashKernels* kernels_;
};

}  // namespace pylm::dedup
