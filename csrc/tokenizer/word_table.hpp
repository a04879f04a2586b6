// Counts of different byte strings: an open-addressing table that holds short strings in its slots.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <memory>
#include <string_view>
#include <utility>
#include <vector>

#include "text/hash.hpp"
#include "tokenizer/piece_key.hpp"

namespace pylm {

// Part of a table, with its own memory. Not safe for threads; different shards may be used by different ones.
//
// A slot is 24 bytes. Words of up to 15 bytes, nearly all of a text, lie in it, padded with zeros, their length
// in the last byte: finding one touches one slot and compares two numbers. Longer ones lie in the arena behind
// their length; their slot has the place there and 56 bits of the hash.
class WordShard {
public:
    WordShard() : slots_(kFirstSlots) {}

    // Add to the count of a short word. O(1).
    void add_short(const PieceKey& key, std::uint64_t hash, std::uint64_t count) {
        const auto equal = [&](const Slot& slot) {
            return ((slot.low ^ key.low) | (slot.high ^ key.high)) == 0;
        };
        if (!add_to(hash, count, equal)) claim(hash, key, count);
    }

    // Add to the count of a word of more than PieceKey::kMaxBytes bytes.
    void add_long(std::string_view word, std::uint64_t hash, std::uint64_t count) {
        const std::uint64_t high = kLong | (hash >> 8);
        const auto equal = [&](const Slot& slot) { return slot.high == high && in_arena(slot.low) == word; };
        if (!add_to(hash, count, equal)) claim(hash, {keep(word), high}, count);
    }

    // Call visit(word, hash, count) for every word. Views live as long as the call.
    template <typename Visit>
    void visit(Visit&& call) const {
        for (std::size_t i = 0; i < slots_.size(); ++i) {
            const Slot& slot = slots_[i];
            if (slot.count == 0) continue;
            if (is_long(slot)) {
                const std::string_view word = in_arena(slot.low);
                call(word, hash_bytes(word), slot.count);
            } else {
                std::array<char, 16> bytes;
                std::memcpy(bytes.data(), &slot.low, 8);
                std::memcpy(bytes.data() + 8, &slot.high, 8);
                call(std::string_view(bytes.data(), slot.high >> 56), PieceKey{slot.low, slot.high}.hash(),
                     slot.count);
            }
        }
    }

    // Add all words of another shard.
    void add_all(const WordShard& other) {
        for (const Slot& slot : other.slots_) {
            if (slot.count == 0) continue;
            if (is_long(slot)) {
                const std::string_view word = other.in_arena(slot.low);
                add_long(word, hash_bytes(word), slot.count);
            } else {
                const PieceKey key{slot.low, slot.high};
                add_short(key, key.hash(), slot.count);
            }
        }
    }

    std::size_t size() const noexcept { return used_; }

private:
    struct Slot {
        std::uint64_t low;
        std::uint64_t high;
        std::uint64_t count;  // 0: the slot is free
    };

    static constexpr std::uint64_t kLong = std::uint64_t{0xFF} << 56;
    static constexpr std::size_t kFirstSlots = 32;
    static constexpr std::size_t kChunkBytes = 1 << 16;

    static bool is_long(const Slot& slot) noexcept { return (slot.high & kLong) == kLong; }

    // Add to the count of the word that `equal` knows; false where it is not there. A word that is met behind a
    // rarer one takes its place, which keeps both within reach: so the frequent ones are found at once.
    template <typename Equal>
    bool add_to(std::uint64_t hash, std::uint64_t count, Equal&& equal) noexcept {
        Slot* const slots = slots_.data();
        const std::size_t first = hash & mask_;
        if (equal(slots[first])) [[likely]] {  // never true of a free slot: no key has the length 0
            slots[first].count += count;
            return true;
        }
        for (std::size_t i = first; slots[i].count != 0;) {
            i = (i + 1) & mask_;
            if (!equal(slots[i])) continue;
            slots[i].count += count;
            if (slots[i].count > slots[first].count) std::swap(slots[i], slots[first]);
            return true;
        }
        return false;
    }

    void claim(std::uint64_t hash, const PieceKey& key, std::uint64_t count);
    void put(std::uint64_t hash, const Slot& slot) noexcept;
    void grow();
    std::uint64_t keep(std::string_view word);

    std::string_view in_arena(std::uint64_t place) const noexcept {
        const char* data = chunks_[place >> 32].get() + (place & 0xFFFFFFFFU);
        std::uint64_t size;
        std::memcpy(&size, data, sizeof size);
        return {data + sizeof size, size};
    }

    std::vector<Slot> slots_;
    std::size_t mask_ = kFirstSlots - 1;
    std::size_t used_ = 0;
    std::vector<std::unique_ptr<char[]>> chunks_;  // a place is chunk << 32 | offset
    std::size_t chunk_used_ = kChunkBytes;
};

// A whole table: shards by the top bits of the hash, so that tables of several threads can be added up shard by
// shard in parallel, and so that only a small part is held twice while it grows.
class WordTable {
public:
    static constexpr std::size_t kShards = 64;

    // Add to the count of a word. `end` is the end of the memory that the word lies in: up to 16 bytes from its
    // start are read where there are that many.
    void add(std::string_view word, const char* end, std::uint64_t count) {
        if (word.size() <= PieceKey::kMaxBytes) {
            const PieceKey key = PieceKey::of(word.data(), word.size(), end);
            const std::uint64_t hash = key.hash();
            shards_[hash >> 58].add_short(key, hash, count);
        } else {
            const std::uint64_t hash = hash_bytes(word);
            shards_[hash >> 58].add_long(word, hash, count);
        }
    }

    WordShard& shard(std::size_t index) noexcept { return shards_[index]; }
    const WordShard& shard(std::size_t index) const noexcept { return shards_[index]; }

private:
    std::array<WordShard, kShards> shards_;
};

}  // namespace pylm
