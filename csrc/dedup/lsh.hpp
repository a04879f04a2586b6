// Locality-sensitive hashing: documents that agree on all rows of a band share a bucket.
#pragma once

#include <cstddef>
#include <cstdint>
#include <limits>
#include <span>
#include <vector>

namespace pylm::dedup {

// Disjoint sets of 0..size-1 whose representative is always the smallest member, whatever the order of
// unions.
class UnionFind {
public:
    explicit UnionFind(std::size_t size);
    std::size_t find(std::size_t item) noexcept;        // amortised O(log size)
    void unite(std::size_t a, std::size_t b) noexcept;  // same

private:
    std::vector<std::uint32_t> parent_;
};

// Disjoint sets of 0..parents.size()-1 in an array of the caller's, for collections that outgrow 2^32 or come
// in parts: the parent of every item is itself or a smaller item, at first itself. Unites a[i] and b[i] for all
// i; the least member of a set is its root. Amortised O(log size) a pair. Throws std::invalid_argument for an
// item outside of the array.
template <typename Index>
void unite_pairs(std::span<Index> parents, std::span<const std::int64_t> a, std::span<const std::int64_t> b);

// Make every parent the root of its set. O(size).
template <typename Index>
void find_roots(std::span<Index> parents) noexcept;

// Hashes of the bands of one signature: values [band * rows, (band + 1) * rows) of it to keys[band].
void band_keys(std::span<const std::uint64_t> signature, std::size_t rows,
               std::span<std::uint64_t> keys) noexcept;

// Buckets of two documents or more, over all bands.
struct Buckets {
    static constexpr std::uint32_t none = std::numeric_limits<std::uint32_t>::max();

    std::size_t num_buckets = 0;
    std::size_t num_bands = 0;
    std::vector<std::uint32_t> bucket_of;  // [document * num_bands + band]: bucket or none

    std::span<const std::uint32_t> of(std::size_t document) const noexcept {
        return {bucket_of.data() + document * num_bands, num_bands};
    }
};

// Group documents by their keys (keys[document * num_bands + band]), band by band. Also unites the documents
// of every bucket in `components`. O(n log n) a band; the same for any number of threads. Throws
// std::invalid_argument for 2^32 - 1 documents or buckets and more.
Buckets make_buckets(std::span<const std::uint64_t> keys, std::size_t num_bands, UnionFind& components,
                     unsigned num_threads);

}  // namespace pylm::dedup
