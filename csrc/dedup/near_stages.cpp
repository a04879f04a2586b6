#include "dedup/near_stages.hpp"

#include <algorithm>
#include <numeric>
#include <stdexcept>

#include "dedup/key_table.hpp"
#include "dedup/shingle.hpp"
#include "parallel.hpp"
#include "text/arrow.hpp"

namespace pylm::dedup {

void check_near(std::span<const std::string_view> texts, std::span<const std::string_view> shingled,
                const MinHasher& hasher, const NearOptions& options) {
    if (options.bands == 0 || options.rows == 0 || options.bands * options.rows > hasher.num_perm()) {
        throw std::invalid_argument("bands and rows must be at least 1 and bands * rows at most num_perm");
    }
    if (shingled.size() != texts.size())
        throw std::invalid_argument("one normalised form is needed for every text");
    if (options.keep == Keep::kPriority && options.priority.size() != texts.size())
        throw std::invalid_argument("one priority is needed for every text");
}

Ordered::Ordered(std::span<const std::string_view> texts, std::span<const std::string_view> shingled,
                 const NearOptions& options)
    : order_(texts.size()), same_(shingled.data() == texts.data()) {
    std::iota(order_.begin(), order_.end(), std::size_t{0});
    if (options.keep == Keep::kLongest) {
        std::stable_sort(order_.begin(), order_.end(),
                         [&](std::size_t a, std::size_t b) { return texts[a].size() > texts[b].size(); });
    } else {
        std::stable_sort(order_.begin(), order_.end(), [&](std::size_t a, std::size_t b) {
            return options.priority[a] > options.priority[b];
        });
    }
    const auto in_order = [&](std::span<const std::string_view> views) {
        std::vector<std::string_view> ordered(views.size());
        for (std::size_t i = 0; i < order_.size(); ++i) ordered[i] = views[order_[i]];
        return ordered;
    };
    texts_ = in_order(texts);
    if (!same_) shingled_ = in_order(shingled);
}

std::vector<std::size_t> list_distinct(std::span<const std::string_view> texts, std::span<const std::int64_t> first) {
    std::vector<std::size_t> distinct;
    for (std::size_t i = 0; i < texts.size(); ++i) {
        if (first[i] == static_cast<std::int64_t>(i) && !arrow::is_null(texts[i])) distinct.push_back(i);
    }
    return distinct;
}

Ranked rank_and_sign(std::span<const std::size_t> distinct, std::span<const std::string_view> shingled,
                     const MinHasher& hasher, const NearOptions& options) {
    const std::size_t width = options.verify ? 0 : hasher.num_perm();
    std::vector<std::uint64_t> keys(distinct.size() * options.bands);
    std::vector<std::uint32_t> signatures(distinct.size() * width);
    std::vector<std::uint8_t> has_shingles(distinct.size());
    parallel_for((distinct.size() + kNearBlock - 1) / kNearBlock, options.num_threads, [&](std::size_t task) {
        Shingler shingler(options.rule, options.level);
        MinHasher::Scratch scratch;
        std::vector<std::uint64_t> signature(hasher.num_perm());
        const std::size_t end = std::min(distinct.size(), (task + 1) * kNearBlock);
        for (std::size_t i = task * kNearBlock; i < end; ++i) {
            const auto shingles = shingler(shingled[distinct[i]]);
            has_shingles[i] = !shingles.empty();
            if (shingles.empty()) continue;
            hasher.sign(shingles, signature, scratch);
            band_keys(signature, options.rows, std::span(keys).subspan(i * options.bands, options.bands));
            for (std::size_t k = 0; k < width; ++k) {
                signatures[i * width + k] = static_cast<std::uint32_t>(signature[k] ^ (signature[k] >> 32));
            }
        }
    });
    Ranked ranked;
    for (std::size_t i = 0; i < distinct.size(); ++i) {
        if (!has_shingles[i]) continue;
        const auto rank = static_cast<std::ptrdiff_t>(ranked.text.size());
        const auto from = static_cast<std::ptrdiff_t>(i);
        const auto move_row = [&](auto& values, std::size_t columns) {
            const auto n = static_cast<std::ptrdiff_t>(columns);
            if (rank != from) std::copy_n(values.begin() + from * n, n, values.begin() + rank * n);
        };
        move_row(keys, options.bands);
        move_row(signatures, width);
        ranked.text.push_back(distinct[i]);
    }
    keys.resize(ranked.text.size() * options.bands);
    signatures.resize(ranked.text.size() * width);
    ranked.keys = std::move(keys);
    ranked.signatures = std::move(signatures);
    return ranked;
}

namespace {

// One key of a text.
struct Slot {
    std::uint64_t band_key;
    std::uint64_t place;  // rank * bands + band
    std::uint64_t key() const noexcept { return band_key; }
    bool operator<(const Slot& other) const noexcept {
        return band_key != other.band_key ? band_key < other.band_key : place < other.place;
    }
};

// Texts with one key, if there are several or known documents have it too.
struct Group {
    std::size_t begin;  // of slots
    std::size_t end;
    std::size_t hits_end;  // of the documents of a task
};

}  // namespace

Buckets join_buckets(const Ranked& ranked, std::size_t num_bands, const Against& against, Touched& touched,
                     unsigned num_threads) {
    std::vector<Slot> slots(ranked.keys.size());
    for (std::size_t i = 0; i < slots.size(); ++i) slots[i] = {ranked.keys[i], i};
    sort_by_key(slots, num_threads);

    constexpr std::size_t kTask = 1 << 14;  // slots
    struct Found {
        std::vector<Group> groups;
        std::vector<std::uint32_t> documents;
    };
    std::vector<Found> found((slots.size() + kTask - 1) / kTask);
    parallel_for(found.size(), num_threads, [&](std::size_t task) {
        // From the first key that begins in the task to the last one.
        const auto border = [&](std::size_t i) {
            while (i > 0 && i < slots.size() && slots[i].band_key == slots[i - 1].band_key) ++i;
            return std::min(i, slots.size());
        };
        const std::size_t end = border((task + 1) * kTask);
        std::vector<std::uint64_t> keys;
        std::vector<std::size_t> begins;
        for (std::size_t i = border(task * kTask); i < end; ++i) {
            if (!keys.empty() && slots[i].band_key == keys.back()) continue;
            keys.push_back(slots[i].band_key);
            begins.push_back(i);
        }
        begins.push_back(end);
        const auto hits = against.known->find_keys(keys);
        auto& [groups, documents] = found[task];
        std::size_t hit = 0;
        for (std::size_t i = 0; i < keys.size(); ++i) {
            const std::size_t first_hit = hit;
            for (; hit < hits.size() && hits[hit].key == i; ++hit) documents.push_back(hits[hit].document);
            const bool shared = against.among && begins[i + 1] - begins[i] > 1;
            if (shared || hit > first_hit) groups.push_back({begins[i], begins[i + 1], documents.size()});
        }
    });

    for (const Found& task : found)
        touched.documents.insert(touched.documents.end(), task.documents.begin(), task.documents.end());
    std::sort(touched.documents.begin(), touched.documents.end());
    touched.documents.erase(std::unique(touched.documents.begin(), touched.documents.end()), touched.documents.end());

    Buckets buckets;
    buckets.num_bands = num_bands;
    buckets.bucket_of.assign(ranked.keys.size(), Buckets::none);
    touched.offsets.push_back(0);
    for (const auto& [groups, documents] : found) {
        std::size_t hit = 0;
        for (const Group& group : groups) {
            if (buckets.num_buckets == Buckets::none)
                throw std::invalid_argument("more than 2^32 - 1 buckets in one call");
            for (; hit < group.hits_end; ++hit) {
                const auto at = std::lower_bound(touched.documents.begin(), touched.documents.end(), documents[hit]);
                touched.nodes.push_back(static_cast<std::uint32_t>(at - touched.documents.begin()));
            }
            touched.offsets.push_back(touched.nodes.size());
            for (std::size_t i = group.begin; i < group.end; ++i)
                buckets.bucket_of[slots[i].place] = static_cast<std::uint32_t>(buckets.num_buckets);
            ++buckets.num_buckets;
        }
    }
    return buckets;
}

}  // namespace pylm::dedup
