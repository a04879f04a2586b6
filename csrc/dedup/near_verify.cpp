// Compares texts that share buckets: see near_stages.hpp.
#include <algorithm>
#include <numeric>
#include <ranges>
#include <stdexcept>

#include "dedup/near_stages.hpp"
#include "dedup/prefix_index.hpp"
#include "dedup/shingle.hpp"
#include "parallel.hpp"

namespace pylm::dedup {
namespace {

// Nodes by connected component, ascending in each; components of one are left out.
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

// Compares the members of components with the kept ones among them. State shared between components is
// indexed by node or bucket, and a node or a bucket belongs to one component only.
class Verifier {
public:
    Verifier(std::span<const std::string_view> shingled, const Ranked& ranked, const Buckets& buckets,
             const MinHasher& hasher, const NearOptions& options, const Against& against, Assignment& assignment)
        : shingled_(shingled),
          ranked_(ranked),
          buckets_(buckets),
          hasher_(hasher),
          options_(options),
          against_(against),
          assignment_(assignment),
          num_known_(static_cast<std::uint32_t>(assignment.touched.size())),
          kept_in_bucket_(buckets.num_buckets),
          seen_by_(assignment.owner.size(), Buckets::none),
          place_(assignment.owner.size()) {
        if (num_known_ == 0) return;
        for (std::size_t bucket = 0; bucket < buckets.num_buckets; ++bucket) {
            const auto nodes = assignment.touched.of(bucket);
            auto& owners = kept_in_bucket_[bucket];
            owners.assign(nodes.begin(), nodes.end());
            std::sort(owners.begin(), owners.end());
        }
    }

    // A component on one thread.
    void visit_all(std::span<const std::uint32_t> members, Shingler& shingler) {
        Component component{Known(members.first(count_known(members))), {}};
        members = members.subspan(component.known.nodes.size());
        for (const std::uint32_t node : members) {
            const auto set = shingler.distinct(text(node));
            if (visit(node, set, component)) component.kept.add(node, {set.begin(), set.end()});
        }
    }

    // A large one: most of the time goes into the sets, which do not depend on each other.
    void visit_all_in_parallel(std::span<const std::uint32_t> members) {
        Component component{Known(members.first(count_known(members))), {}};
        members = members.subspan(component.known.nodes.size());
        std::vector<Set> sets;
        for (std::size_t begin = 0; begin < members.size(); begin += sets.size()) {
            std::size_t count = 0;
            std::size_t bytes = 0;
            for (; begin + count < members.size() && count < kSetsAtOnce && bytes < kBytesAtOnce; ++count)
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
                if (visit(members[begin + i], sets[i], component))
                    component.kept.add(members[begin + i], std::move(sets[i]));
            }
        }
    }

private:
    using Set = std::vector<std::uint64_t>;  // distinct shingles, ascending

    // What one component has kept.
    struct Kept {
        std::vector<Set> sets;
        std::vector<std::uint32_t> nodes;
        std::size_t num_shingles = 0;
        std::size_t spent = 0;  // about a nanosecond each
        PrefixIndex index;

        void add(std::uint32_t node, Set set) {
            num_shingles += set.size();
            if (!index.is_empty()) index.add(set);
            sets.push_back(std::move(set));
            nodes.push_back(node);
        }

        // Where each text is compared with many others in vain, as with templates that are filled in, an index finds
        // the few that it may resemble. Building it costs as much as some dozens of comparisons a set, so it waits
        // until these are spent.
        void index_where_it_pays(double threshold) {
            if (index.is_empty() ? spent < budget_ : num_shingles < 2 * num_indexed_) {
                budget_ = std::max(budget_, kSpentAShingle * num_shingles);
                return;
            }
            if (num_shingles > kMostIndexed) {  // its entries are numbered in 32 bits
                index = {};
                budget_ = static_cast<std::size_t>(-1);
                return;
            }
            index.build(sets, threshold);
            num_indexed_ = num_shingles;
        }

      private:
        std::size_t budget_ = kLeastSpent;
        std::size_t num_indexed_ = 0;
    };

    // The known documents of a component, with an index as of what it has kept. Signatures are compared one by one:
    // that is faster than finding those that differ in a fifth of their values by their rarest.
    struct Known {
        std::span<const std::uint32_t> nodes;
        std::size_t spent = 0;
        PrefixIndex index;

        explicit Known(std::span<const std::uint32_t> component_nodes) : nodes(component_nodes) {}

        void index_where_it_pays(const KnownDocuments& known, const Touched& touched, double threshold) {
            if (!index.is_empty() || spent < budget_) return;
            std::size_t num_members = 0;
            for (const std::uint32_t node : nodes) num_members += known.num_members(touched.documents[node]);
            budget_ = num_members > kMostIndexed ? static_cast<std::size_t>(-1)
                                                 : std::max(budget_, kSpentAShingle * num_members);
            if (spent < budget_) return;
            const auto set_of = [&](std::uint32_t node) { return known.members(touched.documents[node]); };
            index.build(std::views::transform(nodes, set_of), threshold);
        }

      private:
        std::size_t budget_ = kLeastSpent;
    };

    struct Component {
        Known known;
        Kept kept;
    };

    static constexpr std::size_t kSpentAShingle = 64;
    static constexpr std::size_t kLeastSpent = 1 << 16;
    static constexpr std::size_t kMostIndexed = std::size_t{1} << 31;
    static constexpr std::size_t kSetsAtOnce = 1024;
    static constexpr std::size_t kBytesAtOnce = std::size_t{1} << 26;  // of text
    static constexpr std::size_t kSetsATask = 8;

    std::string_view text(std::uint32_t node) const { return shingled_[ranked_.text[node - num_known_]]; }

    std::size_t count_known(std::span<const std::uint32_t> members) const {
        return static_cast<std::size_t>(std::lower_bound(members.begin(), members.end(), num_known_) - members.begin());
    }

    // Finds the text that a text duplicates. Returns whether it is kept; it is then to be put behind what is.
    bool visit(std::uint32_t node, std::span<const std::uint64_t> set, Component& component) {
        Known& known = component.known;
        Kept& kept = component.kept;
        const std::size_t rank = node - num_known_;
        kept.index_where_it_pays(options_.threshold);
        if (!known.nodes.empty() && !against_.known->compares_signatures())
            known.index_where_it_pays(*against_.known, assignment_.touched, options_.threshold);
        const std::vector<std::uint32_t> candidates = list_candidates(node, set, component);
        const std::size_t num_known = count_known(candidates);
        known.spent += num_known;
        kept.spent += candidates.size() - num_known;
        std::uint32_t owner = node;
        std::vector<std::uint64_t> signature;  // of the set, where it is needed
        for (const std::uint32_t candidate : candidates) {
            const bool is_known = candidate < num_known_;
            const double similarity = is_known
                                          ? similarity_to_known(candidate, set, signature)
                                          : jaccard(kept.sets[place_[candidate]], set, options_.threshold);
            if (similarity < options_.threshold) {
                (is_known ? known.spent : kept.spent) += set.size();
                continue;
            }
            owner = candidate;
            assignment_.owner[node] = candidate;
            assignment_.similarity[node] = similarity;
            break;
        }
        if (!against_.among) return false;
        if (owner == node) place_[node] = static_cast<std::uint32_t>(kept.sets.size());
        for (std::size_t band = 0; band < options_.bands; ++band) {
            const std::uint32_t bucket = buckets_.of(rank)[band];
            if (bucket == Buckets::none) continue;
            auto& owners = kept_in_bucket_[bucket];
            const auto place = std::lower_bound(owners.begin(), owners.end(), owner);
            if (place != owners.end() && *place == owner) continue;
            owners.insert(place, owner);
            if (against_.known != nullptr) assignment_.is_new[rank * options_.bands + band] = 1;
        }
        return owner == node;
    }

    // Kept texts, and known documents, that stand in a bucket of this text, ascending. With an index those that are
    // surely below the threshold are left out.
    std::vector<std::uint32_t> list_candidates(std::uint32_t node, std::span<const std::uint64_t> set,
                                               Component& component) {
        Known& known = component.known;
        Kept& kept = component.kept;
        std::vector<std::uint32_t> candidates;
        const auto buckets = buckets_.of(node - num_known_);
        const auto consider = [&](std::uint32_t owner) {
            if (seen_by_[owner] == node) return false;
            seen_by_[owner] = node;
            return true;
        };
        const auto find = [&](std::uint32_t owner) {
            if (consider(owner) && stands_in_one_of(buckets, owner)) candidates.push_back(owner);
        };
        for (const std::uint32_t bucket : buckets) {
            if (bucket == Buckets::none) continue;
            const auto& owners = kept_in_bucket_[bucket];
            const auto border = std::lower_bound(owners.begin(), owners.end(), num_known_);
            const auto begin = known.index.is_empty() ? owners.begin() : border;
            const auto end = kept.index.is_empty() ? owners.end() : border;
            for (auto at = begin; at < end; ++at) {
                if (consider(*at)) candidates.push_back(*at);
            }
        }
        if (!known.index.is_empty()) {
            known.index.find(against_.known->members(set), [&](std::uint32_t number) { find(known.nodes[number]); });
        }
        if (!kept.index.is_empty())
            kept.spent += kept.index.find(set, [&](std::uint32_t number) { find(kept.nodes[number]); });
        std::sort(candidates.begin(), candidates.end());
        return candidates;
    }

    bool stands_in_one_of(std::span<const std::uint32_t> buckets, std::uint32_t owner) const {
        return std::any_of(buckets.begin(), buckets.end(), [&](std::uint32_t bucket) {
            if (bucket == Buckets::none) return false;
            const auto& owners = kept_in_bucket_[bucket];
            return std::binary_search(owners.begin(), owners.end(), owner);
        });
    }

    double similarity_to_known(std::uint32_t node, std::span<const std::uint64_t> set,
                               std::vector<std::uint64_t>& signature) const {
        if (signature.empty() && against_.known->compares_signatures()) {
            MinHasher::Scratch scratch;
            signature.resize(hasher_.num_perm());
            hasher_.sign(set, signature, scratch);
        }
        return against_.known->similarity(assignment_.touched.documents[node], set, signature, options_.threshold);
    }

    std::span<const std::string_view> shingled_;
    const Ranked& ranked_;
    const Buckets& buckets_;
    const MinHasher& hasher_;
    const NearOptions& options_;
    const Against& against_;
    Assignment& assignment_;
    std::uint32_t num_known_;
    std::vector<std::vector<std::uint32_t>> kept_in_bucket_;  // ascending
    std::vector<std::uint32_t> seen_by_;
    std::vector<std::uint32_t> place_;  // of a kept node among those of its component
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

// The nodes of every bucket become one set.
void unite_buckets(const Buckets& buckets, const Touched& touched, UnionFind& sets) {
    std::vector<std::uint32_t> first(buckets.num_buckets, Buckets::none);
    const auto add = [&](std::size_t bucket, std::size_t node) {
        if (first[bucket] == Buckets::none) first[bucket] = static_cast<std::uint32_t>(node);
        sets.unite(first[bucket], node);
    };
    for (std::size_t bucket = 0; bucket < buckets.num_buckets; ++bucket) {
        for (const std::uint32_t node : touched.of(bucket)) add(bucket, node);
    }
    for (std::size_t place = 0; place < buckets.bucket_of.size(); ++place) {
        const std::uint32_t bucket = buckets.bucket_of[place];
        if (bucket != Buckets::none) add(bucket, touched.size() + place / buckets.num_bands);
    }
}

}  // namespace

Assignment assign(std::span<const std::string_view> shingled, const Ranked& ranked, const MinHasher& hasher,
                  const NearOptions& options, const Against& against) {
    Assignment assignment;
    Buckets buckets;
    if (against.known != nullptr)
        buckets = join_buckets(ranked, options.bands, against, assignment.touched, options.num_threads);
    const std::size_t size = assignment.touched.size() + ranked.text.size();
    if (size >= Buckets::none) throw std::invalid_argument("more than 2^32 - 2 documents in one call");
    assignment.owner.resize(size);
    std::iota(assignment.owner.begin(), assignment.owner.end(), 0U);
    assignment.similarity.assign(size, 1.0);
    UnionFind sets(size);
    if (against.known == nullptr) {
        buckets = make_buckets(ranked.keys, options.bands, sets, options.num_threads);
    } else {
        unite_buckets(buckets, assignment.touched, sets);
        assignment.is_new.resize(ranked.keys.size());
        for (std::size_t i = 0; i < ranked.keys.size(); ++i)
            assignment.is_new[i] = buckets.bucket_of[i] == Buckets::none;
    }
    const Components components = list_components(sets, size);

    // Tasks of small components, about kNearBlock documents each; large ones one by one.
    std::vector<std::size_t> tasks{0};
    std::vector<std::size_t> large;
    const std::size_t num_components = components.offsets.size() - 1;
    const auto members_of = [&](std::size_t i) {
        return std::span(components.members)
            .subspan(components.offsets[i], components.offsets[i + 1] - components.offsets[i]);
    };
    for (std::size_t i = 0; i < num_components; ++i) {
        if (members_of(i).size() >= kNearBlock) large.push_back(i);
        const std::size_t documents = components.offsets[i + 1] - components.offsets[tasks.back()];
        if (documents >= kNearBlock || i + 1 == num_components) tasks.push_back(i + 1);
    }
    Verifier verifier(shingled, ranked, buckets, hasher, options, against, assignment);
    parallel_for(tasks.size() - 1, options.num_threads, [&](std::size_t task) {
        Shingler shingler(options.rule, options.level);
        for (std::size_t i = tasks[task]; i < tasks[task + 1]; ++i) {
            const auto members = members_of(i);
            if (!options.verify) {
                estimate(members, ranked, hasher.num_perm(), assignment);
            } else if (members.size() < kNearBlock) {
                verifier.visit_all(members, shingler);
            }
        }
    });
    for (const std::size_t i : large) {
        if (options.verify) verifier.visit_all_in_parallel(members_of(i));
    }
    return assignment;
}

}  // namespace pylm::dedup
