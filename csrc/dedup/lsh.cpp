#include "dedup/lsh.hpp"

#include <algorithm>
#include <numeric>
#include <stdexcept>
#include <utility>

#include "parallel.hpp"
#include "text/words.hpp"

namespace pylm::dedup {

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
    std::vector<std::vector<std::pair<std::uint64_t, std::uint32_t>>> groups(num_bands);
    parallel_for(num_bands, num_threads, [&](std::size_t band) {
        auto& pairs = groups[band];
        pairs.reserve(num_documents);
        for (std::size_t i = 0; i < num_documents; ++i) {
            pairs.emplace_back(keys[i * num_bands + band], static_cast<std::uint32_t>(i));
        }
        std::sort(pairs.begin(), pairs.end());
        const auto shared = [&](std::size_t i, std::size_t j) { return pairs[i].first == pairs[j].first; };
        std::size_t kept = 0;
        for (std::size_t i = 0; i < pairs.size(); ++i) {
            if ((i > 0 && shared(i - 1, i)) || (i + 1 < pairs.size() && shared(i, i + 1))) continue;
            pairs[i].second = Buckets::none;
        }
        for (const auto& pair : pairs) {
            if (pair.second != Buckets::none) pairs[kept++] = pair;
        }
        pairs.resize(kept);
        pairs.shrink_to_fit();
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
