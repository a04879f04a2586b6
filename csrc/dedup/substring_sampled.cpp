// Every window names one of its places as its anchor, by its own symbols alone: the place with the least hash
// of the 8 bytes there, the first of equal ones, among those with `core` symbols of the window to come
// (Schleimer, Wilkerson, Aiken, "Winnowing", 2003). So equal windows have their anchors at the same distance
// from their beginnings, and anchors of equal windows share a core. One place in about (length - core) / 2 is
// an anchor, and only its core's fingerprint and its place are kept.
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
#include <array>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>
#include <string_view>
#include <vector>

#include "dedup/substring_windows.hpp"
#include "dedup/xxhash.hpp"
#include "parallel.hpp"

namespace pylm::dedup {
namespace {

constexpr std::size_t kSmallGroup = 8;         // members that are compared pair by pair
constexpr std::size_t kParts = 4;              // of a large group's windows
constexpr std::size_t kMoreSymbols = 4096;     // compared at a time beyond the windows of an anchor
constexpr std::size_t kPartitionSize = 1 << 15;  // anchors: in the cache of a core
constexpr std::size_t kLeastTask = std::size_t{1} << 20;  // symbols
constexpr std::size_t kBatch = 64;               // anchors whose marks and texts are fetched ahead

std::uint64_t load64(const char* data) noexcept {
    std::uint64_t word;
    std::memcpy(&word, data, sizeof word);
    return word;
}

// Equal bytes from `a` and `b` on, `limit` at most.
std::size_t count_equal(const char* a, const char* b, std::size_t limit) noexcept {
    std::size_t i = 0;
    for (; i + 8 <= limit; i += 8) {
        const std::uint64_t differs = load64(a + i) ^ load64(b + i);
        if (differs != 0) return i + static_cast<std::size_t>(std::countr_zero(differs)) / 8;
    }
    while (i < limit && a[i] == b[i]) ++i;
    return i;
}

// Equal bytes before `a` and `b`, `limit` at most.
std::size_t count_equal_before(const char* a, const char* b, std::size_t limit) noexcept {
    std::size_t i = 0;
    for (; i + 8 <= limit; i += 8) {
        const std::uint64_t differs = load64(a - i - 8) ^ load64(b - i - 8);
        if (differs != 0) return i + static_cast<std::size_t>(std::countl_zero(differs)) / 8;
    }
    while (i < limit && *(a - i - 1) == *(b - i - 1)) ++i;
    return i;
}

// How anchors are chosen.
struct Sampling {
    std::size_t length;  // of windows, in symbols
    std::size_t core;    // symbols from an anchor on that its windows share
    std::size_t spread;  // distances of an anchor from the beginnings of its windows: 0 to spread - 1

    explicit Sampling(std::size_t window) noexcept
        : length(window), core((window + 1) / 2), spread(window - core + 1) {}
};

// The key that decides among the places of a window, without its lower half: the hash of the first 8 bytes of
// the core.
struct WholeKey {
    std::uint64_t operator()(const char* data, std::size_t) const noexcept { return hash(load64(data)); }
    static std::uint64_t hash(std::uint64_t word) noexcept { return (word + 1) * 0x9E3779B97F4A7C15ULL & kMask; }
    static constexpr std::uint64_t kMask = ~std::uint64_t{0xFFFFFFFF};
};
// Of cores that are smaller; `left` bytes are to be read.
struct ShortKey {
    std::size_t size;
    std::uint64_t operator()(const char* data, std::size_t left) const noexcept {
        std::uint64_t word = 0;
        if (left >= 8) {
            word = load64(data) & ((std::uint64_t{1} << 8 * size) - 1);
        } else {
            std::memcpy(&word, data, size);
        }
        return WholeKey::hash(word);
    }
};

// Calls visit(key, anchor, first window, last window), counted from the first of `num_windows` windows that
// begin with `data`, for each anchor in order. Van Herk's sliding minimum: a window over blocks of `spread`
// places is the end of one and the beginning of the next. The lower half of a key in `least` is its place, so
// that the first of equal ones is the least.
template <unsigned kShift, typename Key, typename Visit>
void select_anchors(std::size_t spread, const Key key_of, std::string_view data, std::size_t num_windows,
                    std::vector<std::uint64_t>& least, Visit&& visit) {
    const auto key_at = [=](std::size_t place) {
        return key_of(data.data() + (place << kShift), data.size() - (place << kShift)) | place;
    };
    least.resize(spread);
    for (std::size_t i = 0; i < spread; ++i) least[i] = key_at(i);
    std::uint64_t current = ~std::uint64_t{0};
    std::size_t first = 0;
    const auto leave = [&](std::size_t window) {
        visit(current & WholeKey::kMask, current & ~WholeKey::kMask, first, window - 1);
        first = window;
    };
    for (std::size_t block = 0; block < num_windows; block += spread) {
        std::uint64_t* const blocks_least = least.data();
        for (std::size_t i = spread - 1; i > 0; --i) {
            blocks_least[i - 1] = std::min(blocks_least[i - 1], blocks_least[i]);
        }
        if (blocks_least[0] != current) {
            if (block != 0) leave(block);
            current = blocks_least[0];
        }
        const std::size_t count = std::min(spread, num_windows - block);
        std::uint64_t begun = ~std::uint64_t{0};
        for (std::size_t i = 1; i < count; ++i) {
            const std::uint64_t next = key_at(block + spread + i - 1);
            begun = std::min(begun, next);
            const std::uint64_t now = std::min(blocks_least[i], begun);
            blocks_least[i - 1] = next;
            if (now != current) {
                leave(block + i);
                current = now;
            }
        }
        if (block + spread < num_windows) blocks_least[spread - 1] = key_at(block + 2 * spread - 1);
    }
    leave(num_windows);
}

// An anchor and the windows that may have it as theirs: those that begin in [begin, end).
struct Member {
    std::size_t place;
    std::size_t begin;
    std::size_t end;
};

class Matcher {
public:
    Matcher(const Documents& documents, bool has_sources, const Sampling& sampling, WindowMarks& marks) noexcept
        : documents_(documents), sampling_(sampling), marks_(marks),
          sources_end_(has_sources ? documents.sources_end() : documents.num_places()),
          targets_begin_(has_sources ? documents.sources_end() : 0) {}

    // Whether a place may serve as the earlier one.
    bool is_source(std::size_t place) const noexcept { return place < sources_end_; }

    bool is_known(std::size_t first, std::size_t last) const noexcept { return marks_.later().all(first, last); }

    // Mark what agrees around `place` and the smaller `earlier` for `length` symbols or more, in windows that
    // begin `before` to 0 symbols before the place at most, and beyond these what is not known.
    void compare(std::size_t place, std::size_t earlier, std::size_t before) noexcept {
        const Documents::Place a = documents_.place(place);
        const Documents::Place b = documents_.place(earlier);
        const unsigned shift = documents_.shift();
        const std::size_t length = sampling_.length;
        const std::size_t most_left = std::min(a.before, b.before);
        const std::size_t most_right = std::min(a.behind, b.behind);
        std::size_t right = std::min(length, most_right);
        std::size_t left = std::min(before, most_left);
        if (left + right < length) return;
        const auto equal_from = [&](std::size_t from, std::size_t limit) {
            const std::size_t bytes = from << shift;
            return count_equal(a.at + bytes, b.at + bytes, limit << shift) >> shift;
        };
        const auto equal_before = [&](std::size_t from, std::size_t limit) {
            const std::size_t bytes = from << shift;
            return count_equal_before(a.at - bytes, b.at - bytes, limit << shift) >> shift;
        };
        const std::size_t right_limit = right;
        right = equal_from(0, right);
        if (left + right < length) return;
        const std::size_t left_limit = left;
        left = equal_before(0, left);
        if (left + right < length) return;
        bool more = right == right_limit;
        while (more && right < most_right) {
            const std::size_t limit = marks_.later().num_clear_up(place + right - length + 1,
                                                                  std::min(kMoreSymbols, most_right - right));
            const std::size_t equal = equal_from(right, limit);
            right += equal;
            more = equal == limit && limit > 0;
        }
        more = left == left_limit;
        while (more && left < most_left) {
            const std::size_t limit =
                marks_.later().num_clear_down(place - left - 1, std::min(kMoreSymbols, most_left - left));
            const std::size_t equal = equal_before(left, limit);
            left += equal;
            more = equal == limit && limit > 0;
        }
        marks_.set_equal(place - left, earlier - left, left + right - length + 1);
    }

    // Whether nothing is left to find out about the windows that hold the core at `place`.
    bool is_settled(std::size_t place) const noexcept {
        return is_known(place - std::min(place, sampling_.spread - 1), place);
    }

    // `places` rise and have the same fingerprint. Keeps memory for the next call; a Matcher has one thread.
    void match(std::span<const std::size_t> places) {
        if (places.size() < 2 || !is_source(places.front()) || places.back() < targets_begin_) return;
        members_.clear();
        for (std::size_t i = 0; i < places.size(); ++i) {
            const std::size_t place = places[i];
            const Documents::Place at = documents_.place(place);
            std::size_t begin = place - std::min(at.before, sampling_.spread - 1);
            // Of two places with equal keys in a window the first one is the anchor.
            if (i > 0 && places[i - 1] >= begin && have_equal_keys(places[i - 1], place)) {
                begin = places[i - 1] + 1;
            }
            const std::size_t end = place + std::min(at.behind, sampling_.length) + 1;
            if (end - begin > sampling_.length) members_.push_back({place, begin, end - sampling_.length});
        }
        match(members_, 0, sampling_.spread);
    }

private:
    // Whether two places compete with equal keys.
    bool have_equal_keys(std::size_t a, std::size_t b) const noexcept {
        const std::size_t size = std::min<std::size_t>(8, sampling_.core << documents_.shift());
        return count_equal(documents_.place(a).at, documents_.place(b).at, size) == size;
    }

    // Whether nothing is left to find out about those windows of a member that begin `least` to `end` - 1
    // symbols before it.
    bool is_settled(const Member& member, std::size_t least, std::size_t end) const noexcept {
        const std::size_t windows_begin = std::max(member.begin + end, member.place + 1) - end;
        const std::size_t windows_end = std::max(std::min(member.end + least, member.place + 1), least) - least;
        return windows_begin >= windows_end || is_known(windows_begin, windows_end - 1);
    }

    void match(std::span<const Member> members, std::size_t least, std::size_t end) {
        if (members.size() < 2 || !is_source(members.front().place) || members.back().place < targets_begin_) return;
        if (members.size() <= kSmallGroup) return match_pairs(members, least, end);
        const Member* last_source = nullptr;
        for (const Member& member : members) {
            if (last_source != nullptr && !is_settled(member, least, end)) {
                compare(member.place, members.front().place, end - 1);
                if (last_source != members.data() && !is_settled(member, least, end)) {
                    compare(member.place, last_source->place, end - 1);
                }
            }
            if (is_source(member.place)) last_source = &member;
        }
        if (end - least == 1) return match_equal_hashes(members, least, end);
        const std::size_t num_parts = std::min(kParts, end - least);
        for (std::size_t part = 0; part < num_parts; ++part) {
            match_part(members, least + part * (end - least) / num_parts,
                       least + (part + 1) * (end - least) / num_parts);
        }
    }

    void match_pairs(std::span<const Member> members, std::size_t least, std::size_t end) noexcept {
        for (std::size_t i = 1; i < members.size(); ++i) {
            if (members[i].place < targets_begin_) continue;
            for (std::size_t j = i; j > 0 && !is_settled(members[i], least, end); --j) {
                if (is_source(members[j - 1].place)) compare(members[i].place, members[j - 1].place, end - 1);
            }
        }
    }

    // Members with one window each, all of one hash: almost always equal to the first.
    void match_equal_hashes(std::span<const Member> members, std::size_t least, std::size_t end) {
        std::vector<std::size_t> different;
        for (const Member& member : members.subspan(1)) {
            for (std::size_t i = 0; i < different.size() && !is_settled(member, least, end); ++i) {
                compare(member.place, different[i], end - 1);
            }
            if (is_source(member.place) && !is_settled(member, least, end)) different.push_back(member.place);
        }
    }

    // Windows that begin `least` to `end` - 1 symbols before their anchor share all symbols but end - 1 -
    // least.
    void match_part(std::span<const Member> members, std::size_t least, std::size_t end) {
        struct Hashed {
            std::uint64_t hash;
            Member member;
        };
        std::vector<Hashed> hashed;
        const unsigned shift = documents_.shift();
        for (const Member& member : members) {
            if (is_settled(member, least, end)) continue;
            const char* begin = documents_.place(member.place - least).at;
            const std::size_t shared = sampling_.length - (end - 1 - least);
            hashed.push_back({xxh3_64({begin, shared << shift}, 0), member});
        }
        std::sort(hashed.begin(), hashed.end(), [](const Hashed& a, const Hashed& b) {
            return a.hash != b.hash ? a.hash < b.hash : a.member.place < b.member.place;
        });
        std::vector<Member> group;
        for (std::size_t i = 0; i < hashed.size();) {
            group.clear();
            const std::uint64_t hash = hashed[i].hash;
            for (; i < hashed.size() && hashed[i].hash == hash; ++i) group.push_back(hashed[i].member);
            match(group, least, end);
        }
    }

    const Documents& documents_;
    const Sampling& sampling_;
    WindowMarks& marks_;
    std::size_t sources_end_;
    std::size_t targets_begin_;
    std::vector<Member> members_;
};

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
                const std::uint64_t hash =
                    xxh3_64({data.data() + (anchor << kShift), sampling_.core << kShift}, 0);
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

void mark_by_anchors(const Documents& documents, bool has_sources, const SubstringOptions& options, WindowMarks& marks) {
    Anchors(documents, has_sources, options, marks).match_all();
}

}  // namespace pylm::dedup
