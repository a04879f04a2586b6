// Finds the sets that may resemble a given one among many, without comparing it with each.
#pragma once

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

namespace pylm::dedup {

// Sets of hashes, whose members may repeat, by their rarest members. Sets x and y with Jaccard similarity >= t have
// at least o = t / (1 + t) (|x| + |y|) members in common, so the first one that they share, whatever order of all
// members "first" is about, has o members from itself on in each: Xiao et al., "Efficient Similarity Joins for Near
// Duplicate Detection", 2008. In the order from the rarest on, few other sets have such a member so early. Sets of
// one size, within 3 %, have lists of their own, as o would be less for smaller ones.
//
// How often a member occurs is counted once, when the index is built, by the upper bits of a product: members
// that share a counter count as more frequent than they are, which changes the order, but leaves it one. Takes
// about 8 bytes a member at a threshold of 0.8; there may be 2^32 - 2 of them.
class PrefixIndex {
public:
    bool is_empty() const noexcept { return counts_.empty(); }

    // Index sets, numbered from 0 on, in place of all that was there.
    template <typename Sets>
    void build(const Sets& sets, double threshold) {
        threshold_ = threshold;
        std::size_t members = 0;
        std::size_t entries = 0;
        for (const auto& set : sets) {
            members += set.size();
            const double smallest = threshold * static_cast<double>(set.size());
            entries += prefix_length(set.size(), least_in_common(set.size(), smallest));
        }
        // The index is built anew before there are twice as many.
        count_shift_ = 64 - std::max(8, static_cast<int>(std::bit_width(members)));
        head_shift_ = 64 - std::max(8, static_cast<int>(std::bit_width(entries)));
        counts_.assign(std::size_t{1} << (64 - count_shift_), 0);
        heads_.assign(std::size_t{1} << (64 - head_shift_), kNone);
        entries_.clear();
        entries_.reserve(entries);
        least_of_class_.fill(kNone);
        num_sets_ = 0;
        for (const auto& set : sets) {
            for (const std::uint64_t member : set) {
                std::uint16_t& count = counts_[count_slot(member)];
                if (count != 0xFFFF) ++count;
            }
        }
        for (const auto& set : sets) add(set);
    }

    // Index one more set, with the next number.
    void add(std::span<const std::uint64_t> set) {
        const auto size = static_cast<std::uint32_t>(set.size());
        const std::size_t size_class = class_of(size);
        least_of_class_[size_class] = std::min(least_of_class_[size_class], size);
        order_prefix(set);
        for (std::uint32_t i = 0; i < first_.size(); ++i) {
            std::uint32_t& head = heads_[head_slot(first_[i].value, size_class)];
            entries_.push_back({num_sets_, head, size, size - i});
            head = static_cast<std::uint32_t>(entries_.size() - 1);
        }
        ++num_sets_;
    }

    // Call visit(number) for all sets whose similarity with the given one may be >= threshold, and others; for some
    // more than once. Returns how many steps it took.
    template <typename Visit>
    std::size_t find(std::span<const std::uint64_t> set, Visit&& visit) {
        const auto size = static_cast<double>(set.size());
        const std::size_t last = class_of(size / threshold_ + 1);
        std::size_t steps = set.size();
        order_prefix(set);
        for (std::size_t size_class = class_of(size * threshold_ - 1); size_class <= last; ++size_class) {
            if (least_of_class_[size_class] == kNone) continue;
            const double other = std::max<double>(least_of_class_[size_class], threshold_ * size);
            const std::size_t length = prefix_length(set.size(), least_in_common(set.size(), other));
            steps += length;
            for (std::size_t i = 0; i < std::min(length, first_.size()); ++i) {
                std::uint32_t at = heads_[head_slot(first_[i].value, size_class)];
                for (; at != kNone; at = entries_[at].next, ++steps) {
                    const Entry& entry = entries_[at];
                    const std::size_t most = std::min<std::size_t>(set.size() - i, entry.left);
                    if (most >= least_in_common(set.size(), entry.size)) visit(entry.set);
                }
            }
        }
        return steps;
    }

private:
    static constexpr std::uint32_t kNone = 0xFFFFFFFF;
    static constexpr std::size_t kClassesADoubling = 24;
    static constexpr std::size_t kClasses = kClassesADoubling * 32 + 1;

    struct Entry {
        std::uint32_t set;
        std::uint32_t next;  // in the same list
        std::uint32_t size;  // of the set
        std::uint32_t left;  // members from this one on
    };
    struct Member {
        std::uint16_t count;
        std::uint64_t value;
        bool operator<(const Member& other) const noexcept {
            return count != other.count ? count < other.count : value < other.value;
        }
    };

    static std::size_t class_of(double size) noexcept {
        const double doublings = std::log2(std::max(size, 1.0));
        return std::min(kClasses - 1, static_cast<std::size_t>(doublings * kClassesADoubling));
    }

    // Hashes may have 32 bits.
    std::size_t count_slot(std::uint64_t member) const noexcept {
        return static_cast<std::size_t>((member * 0x9E3779B97F4A7C15) >> count_shift_);
    }
    std::size_t head_slot(std::uint64_t member, std::size_t size_class) const noexcept {
        const std::uint64_t mixed = (member + size_class * 0xD6E8FEB86659FD93) * 0x9E3779B97F4A7C15;
        return static_cast<std::size_t>(mixed >> head_shift_);
    }

    // A little less than that, as a similarity is rounded before it is compared.
    std::size_t least_in_common(std::size_t size, double other) const noexcept {
        const double both = static_cast<double>(size) + other;
        return static_cast<std::size_t>(std::ceil(threshold_ / (1 + threshold_) * both * (1 - 1e-9)));
    }
    static std::size_t prefix_length(std::size_t size, std::size_t in_common) noexcept {
        return size + 1 - std::min(size + 1, std::max<std::size_t>(in_common, 1));
    }

    // Put the first members of a set, as many as its smallest counterpart asks for, into `first_`, in their order.
    void order_prefix(std::span<const std::uint64_t> set) {
        const double smallest = threshold_ * static_cast<double>(set.size());
        const std::size_t length = prefix_length(set.size(), least_in_common(set.size(), smallest));
        first_.clear();
        for (const std::uint64_t member : set) first_.push_back({counts_[count_slot(member)], member});
        const auto end = first_.begin() + static_cast<std::ptrdiff_t>(length);
        if (end != first_.end()) std::nth_element(first_.begin(), end, first_.end());
        std::sort(first_.begin(), end);
        first_.resize(length);
    }

    double threshold_ = 0;
    int count_shift_ = 0;
    int head_shift_ = 0;
    std::vector<std::uint16_t> counts_;  // of members
    std::vector<std::uint32_t> heads_;   // last entry of every list
    std::vector<Entry> entries_;
    std::array<std::uint32_t, kClasses> least_of_class_{};  // size of the smallest set
    std::uint32_t num_sets_ = 0;
    std::vector<Member> first_;
};

}  // namespace pylm::dedup
