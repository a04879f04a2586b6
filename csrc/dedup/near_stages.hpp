// Steps that near_duplicates and near_against share, in their order.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string_view>
#include <vector>

#include "dedup/lsh.hpp"
#include "dedup/minhash.hpp"
#include "dedup/near.hpp"

namespace pylm::dedup {

inline constexpr std::size_t kNearBlock = 128;  // documents a task

// Throws std::invalid_argument for options that do not fit.
void check_near(std::span<const std::string_view> texts, std::span<const std::string_view> shingled,
                const MinHasher& hasher, const NearOptions& options);

// The texts from the most preferred on.
class Ordered {
public:
    Ordered(std::span<const std::string_view> texts, std::span<const std::string_view> shingled,
            const NearOptions& options);

    std::span<const std::string_view> texts() const noexcept { return texts_; }
    std::span<const std::string_view> shingled() const noexcept { return same_ ? texts_ : shingled_; }
    std::size_t index(std::size_t place) const noexcept { return order_[place]; }

private:
    std::vector<std::size_t> order_;
    bool same_;
    std::vector<std::string_view> texts_;
    std::vector<std::string_view> shingled_;
};

// The first of equal texts, without nulls; `first` as of exact_duplicates.
std::vector<std::size_t> list_distinct(std::span<const std::string_view> texts, std::span<const std::int64_t> first);

// The distinct texts that have shingles, in order of preference: their numbers from here on are ranks.
struct Ranked {
    std::vector<std::size_t> text;            // rank -> index of the text
    std::vector<std::uint64_t> keys;          // rank * bands + band
    std::vector<std::uint32_t> signatures;    // rank * num_perm, only without verification
};
Ranked rank_and_sign(std::span<const std::size_t> distinct, std::span<const std::string_view> shingled,
                     const MinHasher& hasher, const NearOptions& options);

// What comes before all texts, and whether these are compared with each other.
struct Against {
    const KnownDocuments* known = nullptr;
    bool among = true;
};

// Known documents that share a bucket with a text. What is compared are nodes: these documents in their order, then
// the ranks.
struct Touched {
    std::vector<std::uint32_t> documents;
    // Nodes of bucket b: [offsets[b], offsets[b + 1]).
    std::vector<std::size_t> offsets;
    std::vector<std::uint32_t> nodes;

    std::size_t size() const noexcept { return documents.size(); }
    std::span<const std::uint32_t> of(std::size_t bucket) const noexcept {
        if (offsets.empty()) return {};
        return std::span(nodes).subspan(offsets[bucket], offsets[bucket + 1] - offsets[bucket]);
    }
};

// Buckets of texts and known documents. All keys are put in order, and looked up in this order.
Buckets join_buckets(const Ranked& ranked, std::size_t num_bands, const Against& against, Touched& touched,
                     unsigned num_threads);

// Results by node.
struct Assignment {
    std::vector<std::uint32_t> owner;
    std::vector<double> similarity;
    Touched touched;
    std::vector<std::uint8_t> is_new;  // [rank * bands + band], against known documents: the owner is new to the bucket
};
Assignment assign(std::span<const std::string_view> shingled, const Ranked& ranked, const MinHasher& hasher,
                  const NearOptions& options, const Against& against);

}  // namespace pylm::dedup
