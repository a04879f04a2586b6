// Ids of pieces seen before, for one thread: almost every piece of a text has occurred in it already.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "huge_pages.hpp"
#include "text/hash.hpp"
#include "tokenizer/merges.hpp"
#include "tokenizer/piece_key.hpp"

namespace pylm {

// Two places a cache line; of two that are taken, one that has not been asked for lately gives way: what
// comes often stays. Grows with the number of different pieces up to a bound. Not for several threads at once.
class PieceCache {
    template <typename T>
    using Table = std::vector<T, HugePageAllocator<T>>;

  public:
    static constexpr std::size_t kMaxInline = 3;
    static constexpr std::size_t kMaxMany = PieceKey::kMaxBytes + 1;  // ids that are copied where there are many
    static constexpr std::size_t kMaxLong = 256;                      // longer pieces are not kept

    struct alignas(32) Entry {
        PieceKey key;
        // The first kMaxInline ids, or, where there are more, their place in `more_`; then flag and count. Where
        // the ids are not known yet, the place that was given to `add_open`.
        std::array<TokenId, kMaxInline + 1> words{};

        std::size_t num_ids() const noexcept { return words[kMaxInline] & 0xFF; }
        bool is_open() const noexcept { return num_ids() == kOpen; }
        bool is_free() const noexcept { return key.high == 0; }
        // At most kMaxInline ids, and asked for lately: nothing to think about.
        bool is_plain() const noexcept {
            static_assert(kMaxInline == 3);
            return (words[kMaxInline] & (kRecent | 0xFC)) == kRecent;
        }
        // More ids than that, all known, and asked for lately.
        bool is_plain_many() const noexcept {
            return words[kMaxInline] - (kRecent + kMaxInline + 1) < PieceKey::kMaxBytes - kMaxInline;
        }
        bool is_recent() const noexcept { return (words[kMaxInline] & kRecent) != 0; }
        void set_recent(bool recent) noexcept {
            words[kMaxInline] = (words[kMaxInline] & 0xFF) | (recent ? kRecent : 0);
        }

        static constexpr std::uint32_t kOpen = 0xFF;
        static constexpr std::uint32_t kRecent = 0x100;
    };

    struct LongEntry {
        std::uint32_t hash = 0;  // its upper half
        std::uint32_t bytes = 0, ids = 0;
        std::uint16_t num_bytes = 0, num_ids = 0;  // no ids: a free place

        bool is_open() const noexcept { return num_ids == kOpen; }
        static constexpr std::uint16_t kOpen = 0xFFFF;
    };

    PieceCache() : entries_(kMinEntries), long_entries_(kMinLong) {}

    // The table as it is until the next call that adds: loops keep it in registers.
    class Lines {
      public:
        void prefetch(std::uint64_t hash) const noexcept { __builtin_prefetch(line_of(hash)); }

        // Null where the piece is not known.
        Entry* find(const PieceKey& key, std::uint64_t hash) const noexcept {
            Entry* entry = line_of(hash);
            if (entry->key == key) [[likely]] return entry;
            ++entry;
            return entry->key == key ? entry : nullptr;
        }

        // The kMaxMany words that begin with the ids of an entry that is_plain_many.
        const TokenId* many_of(const Entry& entry) const noexcept { return more_ + entry.words[0]; }

      private:
        friend class PieceCache;
        Lines(Table<Entry>& entries, const TokenId* more) noexcept
            : entries_(reinterpret_cast<char*>(entries.data())),
              mask_((entries.size() / 2 - 1) * (2 * sizeof(Entry))),
              more_(more) {}
        Entry* line_of(std::uint64_t hash) const noexcept {
            return reinterpret_cast<Entry*>(entries_ + (hash & mask_));
        }

        char* entries_;
        std::size_t mask_;  // bytes
        const TokenId* more_;
    };
    Lines lines() noexcept { return Lines(entries_, more_.data()); }

    void prefetch(std::uint64_t hash) noexcept { lines().prefetch(hash); }

    // Null where the piece is not known. Valid until the next call that adds.
    const Entry* find(const PieceKey& key, std::uint64_t hash) noexcept {
        Entry* const entry = lines().find(key, hash);
        if (entry != nullptr) entry->set_recent(true);
        return entry;
    }

    // Call before up to `num_entries` pieces are looked up and, where new, added; may forget everything.
    void make_room(std::size_t num_entries) {
        if (num_more_ + num_entries * PieceKey::kMaxBytes > kMaxMore) clear();
    }

    // Add a piece of up to kMaxBytes ids, or say what those of one that was added without are.
    void add(const PieceKey& key, std::uint64_t hash, std::span<const TokenId> ids) {
        Entry entry{key, {}};
        if (ids.size() <= kMaxInline) {
            std::copy(ids.begin(), ids.end(), entry.words.begin());
        } else {
            entry.words[0] = static_cast<TokenId>(num_more_);
            if (more_.size() < num_more_ + 2 * kMaxMany) more_.resize(2 * (num_more_ + 2 * kMaxMany));
            std::copy(ids.begin(), ids.end(), more_.begin() + static_cast<std::ptrdiff_t>(num_more_));
            num_more_ += ids.size();
        }
        entry.words[kMaxInline] = static_cast<std::uint32_t>(ids.size());
        place(entry, hash);
    }

    // Add a piece whose ids are not known yet. The entry may have been forgotten when they are.
    void add_open(const PieceKey& key, std::uint64_t hash, std::uint32_t place_of_ids) {
        place(Entry{key, {place_of_ids, 0, 0, Entry::kOpen}}, hash);
    }

    // Forget all.
    void clear() {
        entries_.assign(entries_.size(), Entry{});
        num_more_ = 0;
        num_added_ = 0;
        clear_long();
    }

    std::span<const TokenId> ids_of(const Entry& entry) const noexcept {
        const std::size_t count = entry.num_ids();
        if (count <= kMaxInline) return std::span(entry.words).first(count);
        return std::span(more_).subspan(entry.words[0], count);
    }

    // The same for pieces of kMaxBytes + 1 to kMaxLong bytes; none where not known. Valid until `add_long`.
    void prefetch_long(std::uint64_t hash) const noexcept {
        __builtin_prefetch(&long_entries_[hash & (long_entries_.size() - 1)]);
    }
    const LongEntry* find_long(std::string_view piece, std::uint64_t hash) const noexcept {
        const LongEntry& entry = long_entries_[slot_of(piece, hash)];
        return entry.num_ids == 0 ? nullptr : &entry;
    }
    std::span<const TokenId> ids_of(const LongEntry& entry) const noexcept {
        return std::span(long_ids_).subspan(entry.ids, entry.num_ids);
    }

    void add_long(std::string_view piece, std::uint64_t hash, std::span<const TokenId> ids) {
        if (ids.empty()) return;  // a place without ids is a free one
        long_ids_.insert(long_ids_.end(), ids.begin(), ids.end());
        place_long(piece, hash, long_ids_.size() - ids.size(), ids.size());
    }
    void add_long_open(std::string_view piece, std::uint64_t hash, std::uint32_t place_of_ids) {
        place_long(piece, hash, place_of_ids, LongEntry::kOpen);
    }

  private:
    static constexpr std::size_t kMinEntries = 1 << 12;
    static constexpr std::size_t kMaxEntries = 1 << 20;  // 32 MiB
    static constexpr std::size_t kMaxMore = 1 << 22;
    static constexpr std::size_t kMinLong = 1 << 8;
    static constexpr std::size_t kMaxLongBytes = 1 << 23;
    void place(const Entry& entry, std::uint64_t hash) {
        if (num_added_ * 2 >= entries_.size() && entries_.size() < kMaxEntries) grow();
        Entry* const line = lines().line_of(hash);
        if (line[0].key == entry.key || line[1].key == entry.key) {
            line[line[0].key == entry.key ? 0 : 1] = entry;
            return;
        }
        ++num_added_;
        if (line[0].is_free()) {
            line[0] = entry;
        } else if (line[1].is_free() || !line[1].is_recent()) {
            line[1] = entry;
        } else if (!line[0].is_recent()) {
            line[0] = entry;
        } else {
            line[0].set_recent(false);
            line[1] = entry;
        }
    }

    void grow() {
        Table<Entry> old(entries_.size() * 4);
        old.swap(entries_);
        num_added_ = 0;
        for (const Entry& entry : old) {
            if (!entry.is_free()) place(entry, entry.key.hash());
        }
    }

    // Where the piece is, or where it would be put.
    std::size_t slot_of(std::string_view piece, std::uint64_t hash) const noexcept {
        const std::size_t mask = long_entries_.size() - 1;
        for (std::size_t slot = hash & mask;; slot = (slot + 1) & mask) {
            const LongEntry& entry = long_entries_[slot];
            if (entry.num_ids == 0) return slot;
            if (entry.hash == static_cast<std::uint32_t>(hash >> 32) && entry.num_bytes == piece.size() &&
                std::memcmp(long_bytes_.data() + entry.bytes, piece.data(), piece.size()) == 0)
                return slot;
        }
    }

    void place_long(std::string_view piece, std::uint64_t hash, std::size_t ids, std::size_t num_ids) {
        if (2 * num_long_ >= long_entries_.size()) grow_long();
        LongEntry* entry = &long_entries_[slot_of(piece, hash)];
        if (entry->num_ids == 0) {
            if (long_bytes_.size() + piece.size() > kMaxLongBytes) {
                clear_long();
                return;
            }
            long_bytes_.insert(long_bytes_.end(), piece.begin(), piece.end());
            ++num_long_;
            entry->hash = static_cast<std::uint32_t>(hash >> 32);
            entry->bytes = static_cast<std::uint32_t>(long_bytes_.size() - piece.size());
            entry->num_bytes = static_cast<std::uint16_t>(piece.size());
        }
        entry->ids = static_cast<std::uint32_t>(ids);
        entry->num_ids = static_cast<std::uint16_t>(num_ids);
    }

    void clear_long() {
        long_entries_.assign(long_entries_.size(), LongEntry{});
        long_bytes_.clear();
        long_ids_.clear();
        num_long_ = 0;
    }

    void grow_long() {
        Table<LongEntry> old(long_entries_.size() * 4);
        old.swap(long_entries_);
        const std::size_t mask = long_entries_.size() - 1;
        for (const LongEntry& entry : old) {
            if (entry.num_ids == 0) continue;
            std::size_t slot = hash_bytes({long_bytes_.data() + entry.bytes, entry.num_bytes}) & mask;
            while (long_entries_[slot].num_ids != 0) slot = (slot + 1) & mask;
            long_entries_[slot] = entry;
        }
    }

    Table<Entry> entries_;
    std::size_t num_added_ = 0;
    Table<TokenId> more_;  // at least kMaxMany behind the first `num_more_`
    std::size_t num_more_ = 0;
    Table<LongEntry> long_entries_;
    std::size_t num_long_ = 0;
    Table<char> long_bytes_;
    Table<TokenId> long_ids_;
};

}  // namespace pylm
