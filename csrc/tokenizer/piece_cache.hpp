// Ids of pieces seen before, for one thread: almost every piece of a text has occurred in it already.
#pragma once

#include <array>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <memory>
#include <mutex>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "huge_pages.hpp"
#include "text/hash.hpp"
#include "tokenizer/merges.hpp"

namespace pylm {

// A piece of up to 15 bytes as two words: its bytes, zeros, its size in the last byte. Never zero.
struct PieceKey {
    static constexpr std::size_t kMaxBytes = 15;
    std::uint64_t low = 0;
    std::uint64_t high = 0;
    bool operator==(const PieceKey&) const noexcept = default;

    // The piece is [begin, begin + size) of readable bytes that end at `end`; 1 <= size <= kMaxBytes.
    static PieceKey of(const char* begin, std::size_t size, const char* end) noexcept {
        static_assert(std::endian::native == std::endian::little, "bytes are masked from the low end");
        PieceKey key;
        if (static_cast<std::size_t>(end - begin) >= 16) [[likely]] {
            std::memcpy(&key, begin, 16);
            key.low &= kMasks[size];
            key.high &= kMasks[size < 8 ? 0 : size - 8];
        } else {
            std::memcpy(&key, begin, size);
        }
        key.high |= static_cast<std::uint64_t>(size) << 56;
        return key;
    }

    std::uint64_t hash() const noexcept {
        const std::uint64_t x = (low ^ 0x9E3779B97F4A7C15ULL) * 0xBF58476D1CE4E5B9ULL;
        const std::uint64_t y = (high ^ (x >> 32)) * 0x94D049BB133111EBULL;
        return y ^ (y >> 32) ^ x;
    }

  private:
    static constexpr std::array<std::uint64_t, 16> kMasks = [] {
        std::array<std::uint64_t, 16> masks{};
        for (std::size_t i = 1; i < 16; ++i) masks[i] = i < 8 ? (std::uint64_t{1} << (8 * i)) - 1 : ~std::uint64_t{0};
        return masks;
    }();
};

// Two places a cache line; what hits moves to the first, what is new replaces the second: what comes often
// stays. Grows with the number of different pieces up to a bound. Not for several threads at once.
class PieceCache {
  public:
    struct alignas(32) Entry {
        PieceKey key;
        std::array<TokenId, 3> ids{};  // or, where there are more, ids[0] is their place in `more()`
        std::uint32_t num_ids = 0;
    };
    static constexpr std::size_t kMaxInline = 3;
    static constexpr std::size_t kMaxLong = 256;  // longer pieces are not kept

    PieceCache() : entries_(kMinEntries), long_entries_(kLongEntries) {}

    const Entry* line_of(std::uint64_t hash) const noexcept {
        return &entries_[(hash & (entries_.size() - 1)) & ~std::size_t{1}];
    }

    void prefetch(std::uint64_t hash) const noexcept { __builtin_prefetch(line_of(hash)); }

    // Null where the piece is not known. Valid until the next call that is not const.
    const Entry* find(const PieceKey& key, std::uint64_t hash) noexcept {
        Entry* line = const_cast<Entry*>(line_of(hash));
        if (line[0].key == key) [[likely]] return &line[0];
        if (line[1].key != key) return nullptr;
        std::swap(line[0], line[1]);
        return &line[0];
    }

    // Remember a piece that `find` does not know.
    void add(const PieceKey& key, std::uint64_t hash, std::span<const TokenId> ids) {
        if (++num_added_ * 2 > entries_.size() && entries_.size() < kMaxEntries) grow();
        Entry entry{key, {}, static_cast<std::uint32_t>(ids.size())};
        if (ids.size() <= kMaxInline) {
            std::copy(ids.begin(), ids.end(), entry.ids.begin());
        } else {
            if (more_.size() + ids.size() > kMaxMore) forget();
            entry.ids[0] = static_cast<TokenId>(more_.size());
            more_.insert(more_.end(), ids.begin(), ids.end());
        }
        insert(entry, hash);
    }

    // Where the ids of entries with more than kMaxInline lie.
    const TokenId* more() const noexcept { return more_.data(); }

    // The same for pieces of kMaxBytes + 1 to kMaxLong bytes; none where not known.
    std::span<const TokenId> find_long(std::string_view piece, std::uint64_t hash) const noexcept {
        const LongEntry& entry = long_entries_[hash & (kLongEntries - 1)];
        if (entry.hash != hash || std::string_view(long_bytes_).substr(entry.bytes, entry.num_bytes) != piece) return {};
        return std::span(long_ids_).subspan(entry.ids, entry.num_ids);
    }

    void add_long(std::string_view piece, std::uint64_t hash, std::span<const TokenId> ids) {
        if (long_bytes_.size() + piece.size() > kMaxLongBytes) {
            long_bytes_.clear();
            long_ids_.clear();
            long_entries_.assign(kLongEntries, LongEntry{});
        }
        long_entries_[hash & (kLongEntries - 1)] = {hash, static_cast<std::uint32_t>(long_bytes_.size()),
                                                    static_cast<std::uint32_t>(piece.size()),
                                                    static_cast<std::uint32_t>(long_ids_.size()),
                                                    static_cast<std::uint32_t>(ids.size())};
        long_bytes_.append(piece);
        long_ids_.insert(long_ids_.end(), ids.begin(), ids.end());
    }

  private:
    static constexpr std::size_t kMinEntries = 1 << 12;
    static constexpr std::size_t kMaxEntries = 1 << 20;  // 32 MiB
    static constexpr std::size_t kMaxMore = 1 << 22;
    static constexpr std::size_t kLongEntries = 1 << 15;
    static constexpr std::size_t kMaxLongBytes = 1 << 22;
    struct LongEntry {
        std::uint64_t hash = 0;
        std::uint32_t bytes = 0, num_bytes = 0;
        std::uint32_t ids = 0, num_ids = 0;
    };

    void insert(const Entry& entry, std::uint64_t hash) noexcept {
        Entry* line = const_cast<Entry*>(line_of(hash));
        if (line[0].key.high == 0) {
            line[0] = entry;
        } else {
            line[1] = entry;
        }
    }

    void forget() {
        entries_.assign(entries_.size(), Entry{});
        more_.clear();
        num_added_ = 0;
    }

    void grow() {
        std::vector<Entry, HugePageAllocator<Entry>> old(entries_.size() * 4);
        old.swap(entries_);
        num_added_ = 0;
        for (const Entry& entry : old) {
            if (entry.key.high == 0) continue;
            insert(entry, entry.key.hash());
            ++num_added_;
        }
    }

    std::vector<Entry, HugePageAllocator<Entry>> entries_;
    std::size_t num_added_ = 0;
    std::vector<TokenId> more_;
    std::vector<LongEntry> long_entries_;
    std::string long_bytes_;
    std::vector<TokenId> long_ids_;
};

// Caches that wait for the next call: later batches find the pieces of earlier ones.
class CachePool {
  public:
    // A cache of one's own until `give` returns it.
    std::unique_ptr<PieceCache> take() {
        {
            const std::scoped_lock lock(mutex_);
            if (!idle_.empty()) {
                std::unique_ptr<PieceCache> cache = std::move(idle_.back());
                idle_.pop_back();
                return cache;
            }
        }
        return std::make_unique<PieceCache>();
    }

    void give(std::unique_ptr<PieceCache> cache) {
        const std::scoped_lock lock(mutex_);
        idle_.push_back(std::move(cache));
    }

  private:
    std::mutex mutex_;
    std::vector<std::unique_ptr<PieceCache>> idle_;  // as many as threads have ever encoded at once
};

}  // namespace pylm
