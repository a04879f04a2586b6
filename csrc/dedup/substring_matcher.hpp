// Compares places that are anchors of one fingerprint and marks equal windows: see substring_sampled.cpp.
#pragma once

#include <algorithm>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "dedup/substring_anchors.hpp"
#include "dedup/substring_windows.hpp"
#include "dedup/xxhash.hpp"

namespace pylm::dedup {

// Equal bytes from `a` and `b` on, `limit` at most.
inline std::size_t count_equal(const char* a, const char* b, std::size_t limit) noexcept {
    std::size_t i = 0;
    for (; i + 8 <= limit; i += 8) {
        const std::uint64_t differs = load64(a + i) ^ load64(b + i);
        if (differs != 0) return i + static_cast<std::size_t>(std::countr_zero(differs)) / 8;
    }
    while (i < limit && a[i] == b[i]) ++i;
    return i;
}

// Equal bytes before `a` and `b`, `limit` at most.
inline std::size_t count_equal_before(const char* a, const char* b, std::size_t limit) noexcept {
    std::size_t i = 0;
    for (; i + 8 <= limit; i += 8) {
        const std::uint64_t differs = load64(a - i - 8) ^ load64(b - i - 8);
        if (differs != 0) return i + static_cast<std::size_t>(std::countl_zero(differs)) / 8;
    }
    while (i < limit && *(a - i - 1) == *(b - i - 1)) ++i;
    return i;
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
    static constexpr std::size_t kSmallGroup = 8;         // members that are compared pair by pair
    static constexpr std::size_t kParts = 4;              // of a large group's windows
    static constexpr std::size_t kMoreSymbols = 4096;     // compared at a time beyond the windows of an anchor

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

}  // namespace pylm::dedup
