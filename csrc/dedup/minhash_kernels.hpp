// The loops of MinHash over all shingles and values, for the registers of each level.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "text/simd.hpp"

namespace pylm::dedup {

// Permutations of shingles to values, one for every place of `least`: `multipliers` and `increments` have as
// many entries. Each kernel lowers least[k] to the least value of any shingle x.
template <typename Word>
struct Permuted {
    std::span<const Word> shingles;
    std::span<const Word> multipliers;
    std::span<const Word> increments;
    std::span<Word> least;
};

// O(shingles * values).
struct MinHashKernels {
    void (*affine32)(const Permuted<std::uint32_t>& job) noexcept;    // (a x + b) mod 2^32
    void (*affine64)(const Permuted<std::uint64_t>& job) noexcept;    // (a x + b) mod 2^64
    void (*mersenne)(const Permuted<std::uint64_t>& job) noexcept;    // (a x + b) mod 2^64 mod 2^61 - 1
    void (*mersenne32)(const Permuted<std::uint64_t>& job) noexcept;  // the low 32 bits of that
};

// The kernels of a level that this machine has; throws std::invalid_argument for others.
const MinHashKernels& minhash_kernels(SimdLevel level);

}  // namespace pylm::dedup
