#include "dedup/near.hpp"

#include <algorithm>
#include <numeric>
#include <stdexcept>

#include "dedup/exact.hpp"
#include "dedup/lsh.hpp"
#include "parallel.hpp"
#include "text/arrow.hpp"

namespace pylm::dedup {
namespace {

constexpr std::size_t kBlock = 128;  // documents a task

// The distinct texts that have shingles, in order of preference: their numbers from here on are ranks.
struct Ranked {
    std::vector<std::size_t> text;            // rank -> index of the text
    std::vector<std::uint64_t> keys;          // rank * bands + band
    std::vector<std::uint32_t> signatures;    // rank * num_perm, only without verification
};

Ranked rank_and_sign(std::span<const std::string_view> texts, std::span<const std::string_view> shingled,
                     const std::vector<std::int64_t>& first, const MinHasher& hasher,
                     const NearOptions& options) {
    std::vector<std::size_t> order;
    for (std::size_t i = 0; i < texts.size(); ++i) {
        if (first[i] == static_cast<std::int64_t>(i) && !arrow::is_null(texts[i])) order.push_back(i);
    }
    const std::size_t width = options.verify ? 0 : hasher.num_perm();
    std::vector<std::uint64_t> keys(order.size() * options.bands);
    std::vector<std::uint32_t> signatures(order.size() * width);
    std::vector<std::uint8_t> has_shingles(order.size());
    parallel_for((order.size() + kBlock - 1) / kBlock, options.num_threads, [&](std::size_t task) {
        Shingler shingler(options.rule, options.level);
        MinHasher::Scratch scratch;
        std::vector<std::uint64_t> signature(hasher.num_perm());
        const std::size_t end = std::min(order.size(), (task + 1) * kBlock);
        for (std::size_t i = task * kBlock; i < end; ++i) {
            const auto shingles = shingler(shingled[order[i]]);
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
    for (std::size_t i = 0; i < order.size(); ++i) {
        if (!has_shingles[i]) continue;
        const auto rank = static_cast<std::ptrdiff_t>(ranked.text.size());
        const auto from = static_cast<std::ptrdiff_t>(i);
        const auto move_row = [&](auto& values, std::size_t columns) {
            const auto n = static_cast<std::ptrdiff_t>(columns);
            if (rank != from) std::copy_n(values.begin() + from * n, n, values.begin() + rank * n);
        };
        move_row(keys, options.bands);
        move_row(signatures, width);
        ranked.text.push_back(order[i]);
    }
    keys.resize(ranked.text.size() * options.bands);
    signatures.resize(ranked.text.size() * width);
    ranked.keys = std::move(keys);
    ranked.signatures = std::move(signatures);
    return ranked;
}

// Ranks by connected component, ascending in each; components of one are left out.
struct Components {
    std::vector<std::uint32_t> members;
    std::vector<std::size_t> offsets{0};
};

Components list_components(UnionFind& sets, std::size_t size) {
    std::vector<std::size_t> count(size + 1, 0);
    for (std::size_t rank = 0; rank < size; ++rank) ++count[sets.find(rank)];
    Components components;
    std::vector<std::size_t> place(size, 0);
    std::size_t total = 0;
    for (std::size_t root = 0; root < size; ++root) {
        if (count[root] < 2) continue;
        place[root] = total;
        total += count[root];
        components.offsets.push_back(total);
    }
    components.members.resize(total);
    for (std::size_t rank = 0; rank < size; ++rank) {
        const std::size_t root = sets.find(rank);
        if (count[root] >= 2) components.members[place[root]++] = static_cast<std::uint32_t>(rank);
    }
    return components;
}

// Results by rank.
struct Assignment {
    std::vector<std::uint32_t> owner;
    std::vector<double> similarity;
};

// Compares the members of components with the kept ones among them. State shared between components is
// indexed by rank or bucket, and a rank or a bucket belongs to one component only.
class Verifier {
public:
    Verifier(std::span<const std::string_view> shingled, const Ranked& ranked, const Buckets& buckets,
             const NearOptions& options, Assignment& assignment)
        : shingled_(shingled),
          ranked_(ranked),
          buckets_(buckets),
          options_(options),
          assignment_(assignment),
          kept_in_bucket_(buckets.num_buckets),
          seen_by_(ranked.text.size(), Buckets::none),
          place_(ranked.text.size()) {}

    // A component on one thread.
    void visit_all(std::span<const std::uint32_t> members, Shingler& shingler) {
        std::vector<Set> kept;
        for (const std::uint32_t rank : members) {
            const auto set = shingler.distinct(text(rank));
            if (visit(rank, set, kept)) kept.emplace_back(set.begin(), set.end());
        }
    }

    // A large one: most of the time goes into the sets, which do not depend on each other.
    void visit_all_in_parallel(std::span<const std::uint32_t> members) {
        std::vector<Set> kept;
        std::vector<Set> sets;
        for (std::size_t begin = 0; begin < members.size(); begin += sets.size()) {
            std::size_t count = 0;
            for (std::size_t bytes = 0; begin + count < members.size() && count < kSetsAtOnce && bytes < kBytesAtOnce; ++count)
                bytes += text(members[begin + count]).size();
            sets.assign(count, {});
            parallel_for((count + kSetsATask - 1) / kSetsATask, options_.num_threads, [&](std::size_t task) {
                Shingler shingler(options_.rule, options_.level);
                for (std::size_t i = task * kSetsATask; i < std::min(count, (task + 1) * kSetsATask); ++i) {
                    const auto set = shingler.distinct(text(members[begin + i]));
                    sets[i].assign(set.begin(), set.end());
                }
            });
            for (std::size_t i = 0; i < count; ++i) {
                if (visit(members[begin + i], sets[i], kept)) kept.push_back(std::move(sets[i]));
            }
        }
    }

private:
    using Set = std::vector<std::uint64_t>;  // distinct shingles, ascending

    static constexpr std::size_t kSetsAtOnce = 1024;
    static constexpr std::size_t kBytesAtOnce = std::size_t{1} << 26;  // of text
    static constexpr std::size_t kSetsATask = 8;

    std::string_view text(std::uint32_t rank) const { return shingled_[ranked_.text[rank]]; }

    // Finds the text that a text duplicates. Returns whether it is kept; its set is then to be put behind `kept`, the
    // sets of those that its component kept before.
    bool visit(std::uint32_t rank, std::span<const std::uint64_t> set, const std::vector<Set>& kept) {
        std::vector<std::uint32_t> candidates;
        for (const std::uint32_t bucket : buckets_.of(rank)) {
            if (bucket == Buckets::none) continue;
            for (const std::uint32_t owner : kept_in_bucket_[bucket]) {
                if (seen_by_[owner] == rank) continue;
                seen_by_[owner] = rank;
                candidates.push_back(owner);
            }
        }
        std::sort(candidates.begin(), candidates.end());
        std::uint32_t owner = rank;
        for (const std::uint32_t candidate : candidates) {
            const double similarity = jaccard(kept[place_[candidate]], set, options_.threshold);
            if (similarity < options_.threshold) continue;
            owner = candidate;
            assignment_.owner[rank] = candidate;
            assignment_.similarity[rank] = similarity;
            break;
        }
        if (owner == rank) place_[rank] = static_cast<std::uint32_t>(kept.size());
        for (const std::uint32_t bucket : buckets_.of(rank)) {
            if (bucket == Buckets::none) continue;
            auto& owners = kept_in_bucket_[bucket];
            if (std::find(owners.begin(), owners.end(), owner) == owners.end()) owners.push_back(owner);
        }
        return owner == rank;
    }

    std::span<const std::string_view> shingled_;
    const Ranked& ranked_;
    const Buckets& buckets_;
    const NearOptions& options_;
    Assignment& assignment_;
    std::vector<std::vector<std::uint32_t>> kept_in_bucket_;
    std::vector<std::uint32_t> seen_by_;
    std::vector<std::uint32_t> place_;  // of a kept rank's set among those of its component
};

void estimate(std::span<const std::uint32_t> members, const Ranked& ranked, std::size_t width,
              Assignment& assignment) {
    const std::uint32_t* owner = ranked.signatures.data() + members[0] * width;
    for (const std::uint32_t rank : members.subspan(1)) {
        const std::uint32_t* own = ranked.signatures.data() + rank * width;
        std::size_t equal = 0;
        for (std::size_t k = 0; k < width; ++k) equal += own[k] == owner[k];
        assignment.owner[rank] = members[0];
        assignment.similarity[rank] = static_cast<double>(equal) / static_cast<double>(width);
    }
}

Assignment assign(std::span<const std::string_view> shingled, const Ranked& ranked, const MinHasher& hasher,
                  const NearOptions& options) {
    const std::size_t size = ranked.text.size();
    Assignment assignment;
    assignment.owner.resize(size);
    std::iota(assignment.owner.begin(), assignment.owner.end(), 0U);
    assignment.similarity.assign(size, 1.0);
    UnionFind sets(size);
    const Buckets buckets = make_buckets(ranked.keys, options.bands, sets, options.num_threads);
    const Components components = list_components(sets, size);

    // Tasks of small components, about kBlock documents each; large ones one by one.
    std::vector<std::size_t> tasks{0};
    std::vector<std::size_t> large;
    const std::size_t num_components = components.offsets.size() - 1;
    const auto members_of = [&](std::size_t i) {
        return std::span(components.members)
            .subspan(components.offsets[i], components.offsets[i + 1] - components.offsets[i]);
    };
    for (std::size_t i = 0; i < num_components; ++i) {
        if (members_of(i).size() >= kBlock) large.push_back(i);
        const std::size_t documents = components.offsets[i + 1] - components.offsets[tasks.back()];
        if (documents >= kBlock || i + 1 == num_components) tasks.push_back(i + 1);
    }
    Verifier verifier(shingled, ranked, buckets, options, assignment);
    parallel_for(tasks.size() - 1, options.num_threads, [&](std::size_t task) {
        Shingler shingler(options.rule, options.level);
        for (std::size_t i = tasks[task]; i < tasks[task + 1]; ++i) {
            const auto members = members_of(i);
            if (!options.verify) {
                estimate(members, ranked, hasher.num_perm(), assignment);
            } else if (members.size() < kBlock) {
                verifier.visit_all(members, shingler);
            }
        }
    });
    for (const std::size_t i : large) {
        if (options.verify) verifier.visit_all_in_parallel(members_of(i));
    }
    return assignment;
}

// Of texts in order of preference.
NearDuplicates find_near(std::span<const std::string_view> texts, std::span<const std::string_view> shingled,
                         const MinHasher& hasher, const NearOptions& options) {
    const std::vector<std::int64_t> first = exact_duplicates(texts, options.num_threads);
    const Ranked ranked = rank_and_sign(texts, shingled, first, hasher, options);
    const Assignment assignment = assign(shingled, ranked, hasher, options);

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

// The numbers of the texts from the most preferred on.
std::vector<std::size_t> order_of(std::span<const std::string_view> texts, const NearOptions& options) {
    std::vector<std::size_t> order(texts.size());
    std::iota(order.begin(), order.end(), std::size_t{0});
    if (options.keep == Keep::kLongest) {
        std::stable_sort(order.begin(), order.end(),
                         [&](std::size_t a, std::size_t b) { return texts[a].size() > texts[b].size(); });
    } else {
        std::stable_sort(order.begin(), order.end(), [&](std::size_t a, std::size_t b) {
            return options.priority[a] > options.priority[b];
        });
    }
    return order;
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
    if (options.bands == 0 || options.rows == 0 || options.bands * options.rows > hasher.num_perm()) {
        throw std::invalid_argument("bands and rows must be at least 1 and bands * rows at most num_perm");
    }
    if (shingled.size() != texts.size())
        throw std::invalid_argument("one normalised form is needed for every text");
    if (options.keep == Keep::kPriority && options.priority.size() != texts.size())
        throw std::invalid_argument("one priority is needed for every text");
    if (options.keep == Keep::kFirst) return find_near(texts, shingled, hasher, options);

    const std::vector<std::size_t> order = order_of(texts, options);
    const auto in_order = [&](std::span<const std::string_view> views) {
        std::vector<std::string_view> ordered(views.size());
        for (std::size_t i = 0; i < order.size(); ++i) ordered[i] = views[order[i]];
        return ordered;
    };
    const bool same = shingled.data() == texts.data();
    const std::vector<std::string_view> ordered = in_order(texts);
    const std::vector<std::string_view> ordered_shingled = same ? std::vector<std::string_view>{} : in_order(shingled);
    const NearDuplicates found = find_near(ordered, same ? ordered : ordered_shingled, hasher, options);
    NearDuplicates result;
    result.representative.resize(texts.size());
    result.similarity.resize(texts.size());
    for (std::size_t i = 0; i < order.size(); ++i) {
        const auto kept = static_cast<std::size_t>(found.representative[i]);
        result.representative[order[i]] = static_cast<std::int64_t>(order[kept]);
        result.similarity[order[i]] = found.similarity[i];
    }
    return result;
}

}  // namespace pylm::dedup
