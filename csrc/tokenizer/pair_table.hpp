// The pairs that may still be merged: how often each occurs, and where.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <utility>
#include <vector>

namespace pylm {

using PairKey = std::uint64_t;  // left << 32 | right: the order of pairs is the order of numbers

constexpr PairKey make_pair_key(std::uint32_t left, std::uint32_t right) noexcept {
    return (static_cast<PairKey>(left) << 32) | right;
}

constexpr std::uint32_t left_of(PairKey pair) noexcept { return static_cast<std::uint32_t>(pair >> 32); }
constexpr std::uint32_t right_of(PairKey pair) noexcept { return static_cast<std::uint32_t>(pair); }

// Rising places of a pair's left tokens. Most pairs have one place, which takes no memory of its own.
class PairPlaces {
public:
    PairPlaces() = default;
    explicit PairPlaces(std::uint32_t size)
        : size_(size), many_(size > 1 ? std::make_unique_for_overwrite<std::uint32_t[]>(size) : nullptr) {}

    std::span<std::uint32_t> view() noexcept { return {size_ > 1 ? many_.get() : &one_, size_}; }

private:
    std::uint32_t size_ = 0;
    std::uint32_t one_ = 0;
    std::unique_ptr<std::uint32_t[]> many_;
};

struct PairState {
    std::int64_t count = 0;
    PairPlaces places;
};

// An open-addressing table with linear probing; keys lie apart from states, so that looking for a pair that was
// dropped, the most frequent case, reads one cache line. Sixteen shards grow on their own.
class PairTable {
public:
    // Add a pair that is not there.
    void insert(PairKey key, PairState state) {
        ++size_;
        Shard& shard = shards_[hash(key) >> 60];
        if (5 * (shard.used + 1) > 4 * shard.keys.size()) grow(shard);
        ++shard.used;
        place(shard, key, std::move(state));
    }

    // Lower a pair's count; forget the pair where that leaves fewer than `least`. Nothing for other pairs.
    void lower(PairKey key, std::int64_t by, std::int64_t least) {
        Shard& shard = shards_[hash(key) >> 60];
        const std::size_t i = find(shard, key);
        if (i == kNowhere) return;
        shard.states[i].count -= by;
        if (shard.states[i].count < least) erase(shard, i);
    }

    // Count of a pair, 0 where it is not there.
    std::int64_t count(PairKey key) const {
        const Shard& shard = shards_[hash(key) >> 60];
        const std::size_t i = find(shard, key);
        return i == kNowhere ? 0 : shard.states[i].count;
    }

    // Remove a pair that is there and give its places.
    PairPlaces take(PairKey key) {
        Shard& shard = shards_[hash(key) >> 60];
        const std::size_t i = find(shard, key);
        PairPlaces places = std::move(shard.states[i].places);
        erase(shard, i);
        return places;
    }

    std::size_t size() const noexcept { return size_; }

    // Call visit(key, count) for every pair, in any order.
    template <typename Visit>
    void visit(Visit&& call) const {
        for (const Shard& shard : shards_)
            for (std::size_t i = 0; i < shard.keys.size(); ++i)
                if (shard.keys[i] != kFree) call(shard.keys[i], shard.states[i].count);
    }

private:
    static constexpr PairKey kFree = ~PairKey{0};
    static constexpr std::size_t kNowhere = ~std::size_t{0};
    static constexpr std::size_t kFirstSlots = 64;

    struct Shard {
        std::vector<PairKey> keys;
        std::vector<PairState> states;
        std::size_t used = 0;
    };

    static std::uint64_t hash(PairKey key) noexcept {
        const std::uint64_t x = (key ^ (key >> 32)) * 0x9E3779B97F4A7C15ULL;
        return (x ^ (x >> 29)) * 0xD6E8FEB86659FD93ULL;
    }

    // The slot where probing starts; any number of slots will do.
    static std::size_t home(const Shard& shard, PairKey key) noexcept {
        return static_cast<std::size_t>(((hash(key) & 0x0FFFFFFFFFFFFFFFULL) >> 28) * shard.keys.size() >> 32);
    }

    static std::size_t find(const Shard& shard, PairKey key) noexcept {
        if (shard.used == 0) return kNowhere;
        for (std::size_t i = home(shard, key);;) {
            if (shard.keys[i] == key) return i;
            if (shard.keys[i] == kFree) return kNowhere;
            if (++i == shard.keys.size()) i = 0;
        }
    }

    static void place(Shard& shard, PairKey key, PairState&& state) {
        std::size_t i = home(shard, key);
        while (shard.keys[i] != kFree)
            if (++i == shard.keys.size()) i = 0;
        shard.keys[i] = key;
        shard.states[i] = std::move(state);
    }

    static void grow(Shard& shard) {
        const std::size_t size = std::max(kFirstSlots, shard.keys.size() + shard.keys.size() / 2);
        std::vector<PairKey> keys(size, kFree);
        std::vector<PairState> states(size);
        keys.swap(shard.keys);
        states.swap(shard.states);
        for (std::size_t i = 0; i < keys.size(); ++i)
            if (keys[i] != kFree) place(shard, keys[i], std::move(states[i]));
    }

    // Remove slot i and close the gap, so that probing never meets a hole.
    void erase(Shard& shard, std::size_t i) {
        const std::size_t size = shard.keys.size();
        --size_;
        --shard.used;
        for (std::size_t next = i;;) {
            if (++next == size) next = 0;
            if (shard.keys[next] == kFree) break;
            const std::size_t from = home(shard, shard.keys[next]);
            // The pair at `next` may move to i unless its home lies between them (cyclically).
            const bool stays = i <= next ? i < from && from <= next : i < from || from <= next;
            if (stays) continue;
            shard.keys[i] = shard.keys[next];
            shard.states[i] = std::move(shard.states[next]);
            i = next;
        }
        shard.keys[i] = kFree;
        shard.states[i] = PairState();
    }

    std::vector<Shard> shards_ = std::vector<Shard>(16);
    std::size_t size_ = 0;
};

}  // namespace pylm
