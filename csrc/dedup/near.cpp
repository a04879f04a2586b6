#include "dedup/near.hpp"

#include <algorithm>
#include <numeric>

#include "dedup/exact.hpp"
#include "dedup/near_stages.hpp"

namespace pylm::dedup {
namespace {

// Of texts in order of preference.
NearDuplicates find_near(std::span<const std::string_view> texts, std::span<const std::string_view> shingled,
                         const MinHasher& hasher, const NearOptions& options) {
    const std::vector<std::int64_t> first = exact_duplicates(texts, options.num_threads);
    const Ranked ranked = rank_and_sign(list_distinct(texts, first), shingled, hasher, options);
    const Assignment assignment = assign(shingled, ranked, hasher, options, {});

    NearDuplicates result;
    result.representative.resize(texts.size());
    std::iota(result.representative.begin(), result.representative.end(), std::int64_t{0});
    result.similarity.assign(texts.size(), 1.0);
    std::vector<std::uint8_t> compared(texts.size(), 0);
    for (std::size_t rank = 0; rank < ranked.text.size(); ++rank) {
        const std::size_t index = ranked.text[rank];
        compared[index] = 1;
        result.representative[index] = static_cast<std::int64_t>(ranked.text[assignment.owner[rank]]);
        result.similarity[index] = assignment.similarity[rank];
    }
    for (std::size_t i = 0; i < texts.size(); ++i) {
        const auto equal = static_cast<std::size_t>(first[i]);
        if (equal == i || !compared[equal]) continue;
        result.representative[i] = result.representative[equal];
        result.similarity[i] = result.similarity[equal];
    }
    return result;
}

}  // namespace

double jaccard(std::span<const std::uint64_t> a, std::span<const std::uint64_t> b,
               double threshold) noexcept {
    const auto smaller = static_cast<double>(std::min(a.size(), b.size()));
    const auto larger = static_cast<double>(std::max(a.size(), b.size()));
    if (larger == 0 || smaller / larger < threshold) return 0;
    // J >= t needs an intersection of t (|a| + |b|) / (1 + t); one less, for rounding.
    const double needed = threshold * (smaller + larger) / (1 + threshold) - 1;
    const auto allowed_misses = static_cast<std::int64_t>(smaller + larger - 2 * needed);
    std::int64_t misses = 0;
    std::size_t common = 0;
    std::size_t i = 0;
    std::size_t j = 0;
    while (i < a.size() && j < b.size()) {
        const std::uint64_t x = a[i];
        const std::uint64_t y = b[j];
        common += x == y;
        misses += x != y;
        i += x <= y;
        j += y <= x;
        if (misses > allowed_misses) return 0;
    }
    return static_cast<double>(common) / static_cast<double>(a.size() + b.size() - common);
}

NearDuplicates near_duplicates(std::span<const std::string_view> texts,
                               std::span<const std::string_view> shingled, const MinHasher& hasher,
                               const NearOptions& options) {
    check_near(texts, shingled, hasher, options);
    if (options.keep == Keep::kFirst) return find_near(texts, shingled, hasher, options);

    const Ordered ordered(texts, shingled, options);
    const NearDuplicates found = find_near(ordered.texts(), ordered.shingled(), hasher, options);
    NearDuplicates result;
    result.representative.resize(texts.size());
    result.similarity.resize(texts.size());
    for (std::size_t i = 0; i < texts.size(); ++i) {
        const auto kept = static_cast<std::size_t>(found.representative[i]);
        result.representative[ordered.index(i)] = static_cast<std::int64_t>(ordered.index(kept));
        result.similarity[ordered.index(i)] = found.similarity[i];
    }
    return result;
}

}  // namespace pylm::dedup
