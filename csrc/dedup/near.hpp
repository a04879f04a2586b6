// Near-duplicates of a collection in memory, from texts to clusters.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string_view>
#include <vector>

#include "dedup/minhash.hpp"
#include "dedup/shingle.hpp"
#include "text/simd.hpp"

namespace pylm::dedup {

// Which text stays: the first, the longest in bytes, or the one that `priority` says; of equal ones the first.
enum class Keep { kFirst, kLongest, kPriority };

struct NearOptions {
    ShingleRule rule;
    std::size_t bands = 0;
    std::size_t rows = 0;  // bands * rows <= num_perm
    double threshold = 0;
    bool verify = true;
    Keep keep = Keep::kFirst;
    std::span<const std::int64_t> priority{};  // kPriority: of every text, the largest stays
    unsigned num_threads = 0;
    SimdLevel level = best_simd_level();  // changes nothing but the time
};

struct NearDuplicates {
    std::vector<std::int64_t> representative;  // of every text: the kept text that it duplicates, or itself
    std::vector<double> similarity;            // to the representative; 1 for itself
};

// Find for every text the kept text that it duplicates. In the order of preference (Keep) a text is compared
// with the kept texts that share a bucket with it, or that stand for a text that does; it joins the first
// whose shingle set has Jaccard similarity >= threshold with its own, or else is kept itself. So every text
// that goes matches the text that stays in its place, and chains of similar texts break. Equal texts are
// compared once.
//
// Without `verify` the clusters are the connected components of the shared buckets, and the similarities are
// estimates from the signatures.
//
// Texts without shingles, and nulls, duplicate nothing and are kept. `shingled` holds what the shingles are
// made of, one a text: `texts` itself, or its normalised form. Similarities are exact up to collisions of the
// shingles' hashes (64 bits, 32 for kJoined32). Deterministic for any number of threads. Memory beside the
// texts: at most 28 bytes a band and text, and the shingles of kept texts of the components at work. Throws
// std::invalid_argument for options that do not fit.
NearDuplicates near_duplicates(std::span<const std::string_view> texts,
                               std::span<const std::string_view> shingled, const MinHasher& hasher,
                               const NearOptions& options);

// Jaccard similarity of two ascending sets; 0 where both are empty. Gives up, and returns a lower bound below
// `threshold`, as soon as the threshold is out of reach. O(a + b).
double jaccard(std::span<const std::uint64_t> a, std::span<const std::uint64_t> b, double threshold) noexcept;

}  // namespace pylm::dedup
