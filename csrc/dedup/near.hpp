// Near-duplicates of a collection in memory, from texts to clusters.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string_view>
#include <vector>

#include "dedup/bloom.hpp"
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

// The document that a text equals, or that stands for a text that it equals.
struct KnownText {
    static constexpr std::uint32_t none = 0xFFFFFFFF;
    std::uint32_t document = none;
    bool is_own = false;  // equals the document itself
};

// Documents that were kept before, numbered from 0 on in the order of preference. Called by several threads.
class KnownDocuments {
public:
    struct Hit {
        std::size_t key;  // index into the keys
        std::uint32_t document;
    };

    virtual ~KnownDocuments() = default;
    virtual std::size_t size() const noexcept = 0;
    // Of every hash.
    virtual std::vector<KnownText> find_texts(std::span<const Hash128> hashes, unsigned num_threads) const = 0;
    // The documents in the buckets of ascending keys, by key, then by document.
    virtual std::vector<Hit> find_keys(std::span<const std::uint64_t> keys) const = 0;
    // Whether similarity() needs the signature.
    virtual bool compares_signatures() const noexcept = 0;
    // Of a document and a set of shingles, or its signature; as jaccard() does.
    virtual double similarity(std::uint32_t document, std::span<const std::uint64_t> set,
                              std::span<const std::uint64_t> signature, double threshold) const = 0;
    // What similarity() compares where that is no signature: similar documents and texts have sets, whose members may
    // repeat, with a Jaccard similarity of at least the threshold.
    virtual std::size_t num_members(std::uint32_t document) const = 0;
    virtual std::vector<std::uint64_t> members(std::uint32_t document) const = 0;
    virtual std::vector<std::uint64_t> members(std::span<const std::uint64_t> set) const = 0;
};

// What a document of an index is found by: a band's key, and the hash of an equal text.
struct KnownKey {
    std::uint64_t key;
    std::uint32_t document;
};
struct KnownHash {
    Hash128 hash;
    KnownText text;
};

struct NearAgainst {
    std::vector<std::int64_t> representative;  // as in NearDuplicates; -1 where a known document stands for the text
    std::vector<std::int64_t> document;        // which one; -1 for other texts
    std::vector<double> similarity;
    // What makes the texts known too. Numbers of documents go on behind those that are.
    std::vector<std::size_t> kept;   // texts with shingles that are kept, by preference: the new documents
    std::vector<KnownKey> keys;
    std::vector<KnownHash> hashes;   // of texts that are kept and of those that they stand for
};

// The same as near_duplicates, verified, for texts that come after documents that are known: as if the texts behind
// these had stood before the others, provided that they were added in the same way. Without `among` texts are
// compared with known documents alone, and nothing becomes known.
NearAgainst near_against(std::span<const std::string_view> texts, std::span<const std::string_view> shingled,
                         const MinHasher& hasher, const NearOptions& options, const KnownDocuments& known, bool among);

// Jaccard similarity of two ascending sets; 0 where both are empty. Gives up, and returns a lower bound below
// `threshold`, as soon as the threshold is out of reach. O(a + b).
double jaccard(std::span<const std::uint64_t> a, std::span<const std::uint64_t> b, double threshold) noexcept;

}  // namespace pylm::dedup
