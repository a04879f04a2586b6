#include "dedup/lsh.hpp"

#include <algorithm>
#include <bit>
#include <numeric>
#include <stdexcept>
#include <utility>

#include "parallel.hpp"
#include "text/words.hpp"

namespace pylm::dedup {

namespace {

constexpr std::size_t kPartSize = 8;  // documents
constexpr std::size_t kMostPartBits = 16;

using Keyed = std::pair<std::uint64_t, std::uint32_t>;  // key of a band, document

// The documents that share their key of a band with another, by key, then by number. Documents go to parts by the
// upper bits of their keys first, which leaves little to sort.
std::vector<Keyed> find_shared(std::span<const std::uint64_t> keys, std::size_t num_bands, std::size_t band) {
    const std::size_t num_documents = keys.size() / num_bands;
    const auto bits =
        std::min(kMostPartBits, static_cast<std::size_t>(std::bit_width(num_documents / kPartSize)));
    const auto part_of = [&](std::uint64_t key) { return bits == 0 ? 0 : key >> (64 - bits); };
    std::vector<std::size_t> ends((std::size_t{1} << bits) + 1, 0);
    for (std::size_t i = band; i < keys.size(); i += num_bands) ++ends[part_of(keys[i]) + 1];
    std::partial_sum(ends.begin(), ends.end(), ends.begin());
    std::vector<Keyed> pairs(num_documents);
    for (std::size_t i = 0; i < num_documents; ++i) {
        const std::uint64_t key = keys[i * num_bands + band];
        pairs[ends[part_of(key)]++] = {key, static_cast<std::uint32_t>(i)};
    }
    // `ends` has moved on: part p lies between the ends of the parts before and itself.
    std::vector<Keyed> shared;
    std::size_t begin = 0;
    for (std::size_t part = 0; part + 1 < ends.size(); ++part) {
        const std::size_t end = ends[part];
        std::sort(pairs.begin() + static_cast<std::ptrdiff_t>(begin), pairs.begin() + static_cast<std::ptrdiff_t>(end));
        for (std::size_t i = begin; i < end; ++i) {
            if ((i > begin && pairs[i - 1].first == pairs[i].first) ||
                (i + 1 < end && pairs[i + 1].first == pairs[i].first))
                shared.push_back(pairs[i]);
        }
        begin = end;
    }
    return shared;
}

}  // namespace

UnionFind::UnionFind(std::size_t size) : parent_(size) { std::iota(parent_.begin(), parent_.end(), 0U); }

std::size_t UnionFind::find(std::size_t item) noexcept {
    while (parent_[item] != item) {
        parent_[item] = parent_[parent_[item]];  // path halving
        item = parent_[item];
    }
    return item;
}

void UnionFind::unite(std::size_t a, std::size_t b) noexcept {
    a = find(a);
    b = find(b);
    if (a == b) return;
    parent_[std::max(a, b)] = static_cast<std::uint32_t>(std::min(a, b));
}

template <typename Index>
void unite_pairs(std::span<Index> parents, std::span<const std::int64_t> a, std::span<const std::int64_t> b) {
    if (a.size() != b.size()) throw std::invalid_argument("a and b must have one length");
    const auto root_of = [&](std::int64_t item) {
        if (item < 0 || static_cast<std::uint64_t>(item) >= parents.size())
            throw std::invalid_argument("an item lies outside of the sets");
        auto place = static_cast<std::size_t>(item);
        while (parents[place] != place) {
            parents[place] = parents[parents[place]];  // path halving
            place = parents[place];
        }
        return place;
    };
    for (std::size_t i = 0; i < a.size(); ++i) {
        const std::size_t x = root_of(a[i]);
        const std::size_t y = root_of(b[i]);
        if (x != y) parents[std::max(x, y)] = static_cast<Index>(std::min(x, y));
    }
}

template <typename Index>
void find_roots(std::span<Index> parents) noexcept {
    for (Index& parent : parents) parent = parents[parent];  // that of a smaller item, done before
}

template void unite_pairs(std::span<std::uint32_t>, std::span<const std::int64_t>, std::span<const std::int64_t>);
template void unite_pairs(std::span<std::uint64_t>, std::span<const std::int64_t>, std::span<const std::int64_t>);
template void find_roots(std::span<std::uint32_t>) noexcept;
template void find_roots(std::span<std::uint64_t>) noexcept;

void band_keys(std::span<const std::uint64_t> signature, std::size_t rows,
               std::span<std::uint64_t> keys) noexcept {
    for (std::size_t band = 0; band < keys.size(); ++band) {
        std::uint64_t key = words::kMultiplier2 * (band + 1);
        for (std::size_t row = band * rows; row < (band + 1) * rows; ++row) {
            key = words::fold_multiply(key ^ signature[row], words::kMultiplier1) + words::kMultiplier2;
        }
        keys[band] = key;
    }
}

Buckets make_buckets(std::span<const std::uint64_t> keys, std::size_t num_bands, UnionFind& components,
                     unsigned num_threads) {
    const std::size_t num_documents = keys.size() / num_bands;
    if (num_documents >= Buckets::none)
        throw std::invalid_argument("more than 2^32 - 2 documents in one call");
    Buckets buckets;
    buckets.num_bands = num_bands;
    buckets.bucket_of.assign(keys.size(), Buckets::none);

    // Every band sorts its own (key, document) pairs; a bucket is named by its first document until all are
    // counted.
    std::vector<std::vector<Keyed>> groups(num_bands);
    parallel_for(num_bands, num_threads, [&](std::size_t band) {
        groups[band] = find_shared(keys, num_bands, band);
    });
    for (std::size_t band = 0; band < num_bands; ++band) {
        const auto& pairs = groups[band];
        for (std::size_t i = 0; i < pairs.size(); ++i) {
            if (i == 0 || pairs[i].first != pairs[i - 1].first) {
                ++buckets.num_buckets;
            } else {
                components.unite(pairs[i - 1].second, pairs[i].second);
            }
            if (buckets.num_buckets > Buckets::none)
                throw std::invalid_argument("more than 2^32 - 1 buckets in one call");
            buckets.bucket_of[pairs[i].second * num_bands + band] =
                static_cast<std::uint32_t>(buckets.num_buckets - 1);
        }
        groups[band].clear();
        groups[band].shrink_to_fit();
    }
    return buckets;
}

}  // namespace pylm::dedup
