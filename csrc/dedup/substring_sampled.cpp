// Every window names one of its places as its anchor, by its own symbols alone: the place with the least hash
// of the 8 bytes there, the first of equal ones, among those with `core` symbols of the window to come
// (Schleimer, Wilkerson, Aiken, "Winnowing", 2003). So equal windows have their anchors at the same distance
// from their beginnings, and anchors of equal windows share a core. One place in about (length - core) / 2 is
// an anchor, and only its place and the fingerprint of its core, or of the first bytes of that, are kept.
//
// Places with one fingerprint are a group. Two of them are compared to both sides as far as they agree; all
// windows in a stretch of `length` or more symbols are then known to have an earlier equal one. That is
// sound, since these windows were compared in full, and once all pairs are compared it is complete, since
// equal windows have their anchors in one group, and between these the stretch holds both.
//
// A window that is known to have an earlier equal one needs no more comparisons. Nor need others be compared
// with it: the earliest of equal windows is never known so, and stays. (The second earliest was found equal
// to the very earliest, so the earliest is marked as repeated too.) This is what keeps runs and masses of
// copies linear: a comparison that goes on for longer than a window does so over windows that were not known.
//
// Large groups are not compared pair by pair. Members are compared with the first one and the last one before
// them. Then the windows left, by their distance from the anchor, are split into parts; those of a part share
// more than the core, and the hash of that divides the group further, down to single windows.
#include <algorithm>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string_view>
#include <vector>

#include "dedup/substring_anchors.hpp"
#include "dedup/substring_matcher.hpp"
#include "dedup/substring_windows.hpp"
#include "dedup/xxhash.hpp"
#include "parallel.hpp"

namespace pylm::dedup {
namespace {

constexpr std::size_t kPartitionSize = 1 << 15;  // anchors: in the cache of a core
constexpr std::size_t kLeastTask = std::size_t{1} << 20;  // symbols
constexpr std::size_t kBatch = 64;               // anchors whose marks and texts are fetched ahead

// Anchors by fingerprint. An anchor is one number: bits of the fingerprint above its place. A partition holds
// those with the same first bits of the fingerprint, which are left out.
class Anchors {
public:
    Anchors(const Documents& documents, bool has_sources, const SubstringOptions& options, WindowMarks& marks)
        : documents_(documents), has_sources_(has_sources), num_threads_(options.num_threads),
          sampling_(documents.length()), marks_(marks),
          place_bits_(static_cast<unsigned>(std::bit_width(documents.num_places()))) {
        const std::size_t expected = 2 * documents.num_places() / (sampling_.spread + 1) + 1;
        partition_bits_ = std::min(20U, static_cast<unsigned>(std::bit_width(expected / kPartitionSize)));
        task_size_ = std::max(kLeastTask, documents.num_places() / 1024);
        const std::size_t text_bytes = documents.num_places() << documents.shift();
        const std::size_t most =
            options.anchor_bytes != 0 ? options.anchor_bytes : std::max<std::size_t>(text_bytes / 2, 1 << 26);
        num_passes_ = std::clamp<std::size_t>(expected * sizeof(std::uint64_t) / most + 1, 1, num_partitions());
    }

    void match_all() {
        for (std::size_t pass = 0; pass < num_passes_; ++pass) {
            begin_ = pass * num_partitions() / num_passes_;
            end_ = (pass + 1) * num_partitions() / num_passes_;
            collect();
            parallel_for(end_ - begin_, num_threads_, [&](std::size_t i) { match_partition(i); });
        }
    }

private:
    // What a range of windows gave: anchors by partition.
    struct Task {
        std::vector<std::uint64_t> anchors;
        std::vector<std::uint32_t> ends;
    };
    // The same before it is put in order.
    struct Collected {
        std::vector<std::uint64_t> anchors;
        std::vector<std::uint32_t> partitions;
    };

    std::size_t num_partitions() const noexcept { return std::size_t{1} << partition_bits_; }
    std::size_t partition_of(std::uint64_t hash) const noexcept {
        return partition_bits_ == 0 ? 0 : hash >> (64 - partition_bits_);
    }

    void collect() {
        const std::size_t num_places = documents_.num_places();
        tasks_.assign((num_places + task_size_ - 1) / task_size_, {});
        parallel_for(tasks_.size(), num_threads_, [&](std::size_t i) {
            collect(tasks_[i], i * task_size_, std::min(num_places, (i + 1) * task_size_));
        });
    }

    // The anchors of the windows that begin in [begin, end).
    void collect(Task& task, std::size_t begin, std::size_t end) {
        Collected collected;
        const unsigned shift = documents_.shift();
        const std::size_t core_bytes = sampling_.core << shift;
        if (core_bytes < 8) {
            const ShortKey key{core_bytes};
            if (shift == 0) collect<0>(key, begin, end, collected);
            if (shift == 1) collect<1>(key, begin, end, collected);
            if (shift == 2) collect<2>(key, begin, end, collected);
        } else {
            if (shift == 0) collect<0>(WholeKey(), begin, end, collected);
            if (shift == 1) collect<1>(WholeKey(), begin, end, collected);
            if (shift == 2) collect<2>(WholeKey(), begin, end, collected);
        }
        const auto& [anchors, partitions] = collected;
        task.ends.assign(end_ - begin_, 0);
        for (const std::uint32_t partition : partitions) ++task.ends[partition];
        std::uint32_t sum = 0;
        for (std::uint32_t& slot : task.ends) {
            const std::uint32_t count = slot;
            slot = sum;
            sum += count;
        }
        task.anchors.resize(anchors.size());
        for (std::size_t i = 0; i < anchors.size(); ++i) task.anchors[task.ends[partitions[i]]++] = anchors[i];
    }

    template <unsigned kShift, typename Key>
    void collect(const Key key, std::size_t begin, std::size_t end, Collected& collected) {
        Matcher matcher(documents_, has_sources_, sampling_, marks_);
        std::vector<std::uint64_t> least;
        for (std::size_t i = documents_.document_at(begin);
             i < documents_.count() && documents_.start(i) < end; ++i) {
            const std::size_t base = std::max(begin, documents_.start(i));
            const std::size_t windows_end = std::min(end, documents_.windows_end(i));
            if (base >= windows_end) continue;
            const std::string_view data(documents_.data(i) + ((base - documents_.start(i)) << kShift),
                                        (documents_.end(i) - base) << kShift);
            std::size_t previous = 0;
            std::uint64_t previous_key = 1;  // no key
            const auto visit = [&](std::uint64_t now, std::size_t anchor, std::size_t first, std::size_t last) {
                // In a run, windows that are equal to those one period before need no anchor.
                if (now == previous_key && anchor - previous < sampling_.spread && matcher.is_source(base)) {
                    if (!matcher.is_known(base + first, base + last)) {
                        matcher.compare(base + anchor, base + previous, sampling_.spread - 1);
                    }
                    if (matcher.is_known(base + first, base + last)) {
                        previous = anchor;
                        return;
                    }
                }
                previous = anchor;
                previous_key = now;
                const std::size_t size = std::min(sampling_.core << kShift, kFingerprintBytes);
                const std::uint64_t hash = xxh3_64({data.data() + (anchor << kShift), size}, 0);
                const std::size_t partition = partition_of(hash);
                if (partition < begin_ || partition >= end_) return;
                collected.anchors.push_back(hash << partition_bits_ >> place_bits_ << place_bits_ |
                                            (base + anchor));
                collected.partitions.push_back(static_cast<std::uint32_t>(partition - begin_));
            };
            select_anchors<kShift>(sampling_.spread, key, data, windows_end - base, least, visit);
        }
    }

    void match_partition(std::size_t partition) {
        std::vector<std::uint64_t> anchors;
        for (const Task& task : tasks_) {
            const std::size_t begin = partition == 0 ? 0 : task.ends[partition - 1];
            anchors.insert(anchors.end(), task.anchors.begin() + static_cast<std::ptrdiff_t>(begin),
                           task.anchors.begin() + static_cast<std::ptrdiff_t>(task.ends[partition]));
        }
        keep_repeated(anchors);
        std::sort(anchors.begin(), anchors.end());
        anchors.erase(std::unique(anchors.begin(), anchors.end()), anchors.end());  // from two tasks each
        Matcher matcher(documents_, has_sources_, sampling_, marks_);
        match_groups(matcher, anchors);
    }

    // Memory is the bound, so it is fetched ahead: the marks of a batch of anchors while the batch before is
    // matched, and the text of those that the marks leave while the rest of the batch is looked through.
    void match_groups(Matcher& matcher, std::span<const std::uint64_t> anchors) const {
        std::vector<std::size_t> places;
        std::vector<std::size_t> ends;
        std::size_t fetched = 0;
        for (std::size_t i = 0; i < anchors.size();) {
            places.clear();
            ends.clear();
            for (; fetched < std::min(anchors.size(), i + 2 * kBatch); ++fetched) {
                marks_.later().prefetch(anchors[fetched] & place_mask());
            }
            while (i < anchors.size() && places.size() < kBatch) {
                const std::uint64_t fingerprint = anchors[i] >> place_bits_;
                const std::size_t begin = places.size();
                for (; i < anchors.size() && anchors[i] >> place_bits_ == fingerprint; ++i) {
                    const auto place = static_cast<std::size_t>(anchors[i] & place_mask());
                    if (!matcher.is_settled(place)) places.push_back(place);
                }
                if (places.size() - begin < 2) {
                    places.resize(begin);
                    continue;
                }
                for (std::size_t j = begin; j < std::min(places.size(), begin + kBatch); ++j) prefetch(places[j]);
                ends.push_back(places.size());
            }
            std::size_t begin = 0;
            for (const std::size_t end : ends) {
                matcher.match(std::span(places).subspan(begin, end - begin));
                begin = end;
            }
        }
    }
    std::uint64_t place_mask() const noexcept { return (std::uint64_t{1} << place_bits_) - 1; }

    void prefetch(std::size_t place) const noexcept {
        const Documents::Place at = documents_.place(place);
        __builtin_prefetch(at.at);
        __builtin_prefetch(at.at - std::min<std::size_t>(64, at.before << documents_.shift()));
        __builtin_prefetch(at.at + std::min<std::size_t>(64, at.behind << documents_.shift()));
    }

    // Drop most anchors whose fingerprint occurs once: those alone in their slot of a table.
    void keep_repeated(std::vector<std::uint64_t>& anchors) const {
        const auto wanted = static_cast<unsigned>(std::bit_width(anchors.size() * 8 + 64));
        const unsigned bits = std::min({wanted, 26U, 64 - place_bits_});
        std::vector<std::uint64_t> seen((std::size_t{1} << bits) / 64);
        std::vector<std::uint64_t> again(seen.size());
        for (const std::uint64_t anchor : anchors) {
            const std::uint64_t slot = anchor >> (64 - bits);
            const std::uint64_t bit = std::uint64_t{1} << (slot % 64);
            again[slot / 64] |= seen[slot / 64] & bit;
            seen[slot / 64] |= bit;
        }
        std::erase_if(anchors, [&](std::uint64_t anchor) {
            const std::uint64_t slot = anchor >> (64 - bits);
            return (again[slot / 64] >> (slot % 64) & 1) == 0;
        });
    }

    const Documents& documents_;
    bool has_sources_;
    unsigned num_threads_;
    Sampling sampling_;
    WindowMarks& marks_;
    unsigned place_bits_;
    unsigned partition_bits_;
    std::size_t task_size_;
    std::size_t num_passes_;
    std::size_t begin_ = 0;  // partitions of this pass
    std::size_t end_ = 0;
    std::vector<Task> tasks_;
};

}  // namespace

void mark_by_anchors(const Documents& documents, bool has_sources, const SubstringOptions& options,
                     WindowMarks& marks) {
    Anchors(documents, has_sources, options, marks).match_all();
}

}  // namespace pylm::dedup
