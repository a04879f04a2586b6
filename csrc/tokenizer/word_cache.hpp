// Ids of words seen before, for one thread. A word of up to 15 bytes and 4 ids is one read of 32 bytes.
#pragma once

#include <array>
#include <cstdint>
#include <cstring>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "text/hash.hpp"
#include "tokenizer/merges.hpp"

namespace pylm {

class WordCache {
  public:
    static constexpr std::size_t kShortBytes = 15;
    static constexpr std::size_t kShortIds = 4;
    static constexpr std::size_t kLongBytes = 64;  // longer ones seldom come again

    // A word of 1 to 15 bytes as a number: its bytes, zeros, and its size in the last byte.
    struct Key {
        std::uint64_t low, high;
    };
    struct Slot {
        std::uint64_t low = 0, high = 0;
        std::array<TokenId, kShortIds> ids;
        bool holds(Key key) const noexcept { return low == key.low && (high & ~kCountMask) == key.high; }
        std::size_t count() const noexcept { return static_cast<std::size_t>(high >> 60); }
    };

    WordCache() : slots_(kNumSlots, Slot{}) {}

    // `data` must have 16 readable bytes.
    static Key key_of(const char* data, std::size_t size) noexcept {
        std::uint64_t low, high;
        std::memcpy(&low, data, 8);
        std::memcpy(&high, data + 8, 8);
        const std::size_t below = size < 8 ? size : 8;
        low &= ~std::uint64_t{0} >> (64 - 8 * below);
        high = size > 8 ? high & (~std::uint64_t{0} >> (128 - 8 * size)) : 0;
        return {low, high | (static_cast<std::uint64_t>(size) << 56)};
    }

    Slot& slot(Key key) noexcept {
        const std::uint64_t mixed = (key.low ^ (key.high * 0x9E3779B97F4A7C15ULL)) * 0xBF58476D1CE4E5B9ULL;
        return slots_[mixed >> (64 - kSlotBits)];
    }

    static void fill(Slot& slot, Key key, std::span<const TokenId> ids) noexcept {
        if (ids.size() > kShortIds || ids.empty()) return;
        slot.low = key.low;
        slot.high = key.high | (static_cast<std::uint64_t>(ids.size()) << 60);
        std::copy(ids.begin(), ids.end(), slot.ids.begin());
    }

    // The ids of a word that is too long for a slot; empty if it is not known.
    std::span<const TokenId> find_long(std::string_view word, std::uint64_t hash) const noexcept {
        if (long_slots_.empty()) return {};
        const LongSlot& slot = long_slots_[hash >> (64 - kLongBits)];
        if (slot.hash != hash || std::string_view(bytes_).substr(slot.bytes_begin, slot.bytes_size) != word) return {};
        return std::span(ids_).subspan(slot.ids_begin, slot.ids_size);
    }

    void add_long(std::string_view word, std::uint64_t hash, std::span<const TokenId> ids) {
        if (long_slots_.empty() || bytes_.size() > kMostBytes || ids_.size() > kMostIds) {
            long_slots_.assign(std::size_t{1} << kLongBits, LongSlot{});
            bytes_.clear();
            ids_.clear();
        }
        long_slots_[hash >> (64 - kLongBits)] = {
            hash, static_cast<std::uint32_t>(bytes_.size()), static_cast<std::uint32_t>(word.size()),
            static_cast<std::uint32_t>(ids_.size()), static_cast<std::uint32_t>(ids.size())};
        bytes_ += word;
        ids_.insert(ids_.end(), ids.begin(), ids.end());
    }

  private:
    static constexpr std::uint64_t kCountMask = 0xFULL << 60;  // sizes to 15 leave these bits free
    static constexpr unsigned kSlotBits = 15;                  // 1 MiB
    static constexpr std::size_t kNumSlots = std::size_t{1} << kSlotBits;
    static constexpr unsigned kLongBits = 14;
    static constexpr std::size_t kMostBytes = 1 << 20, kMostIds = 1 << 19;
    struct LongSlot {
        std::uint64_t hash = 0;
        std::uint32_t bytes_begin = 0, bytes_size = 0, ids_begin = 0, ids_size = 0;
    };

    std::vector<Slot> slots_;
    std::vector<LongSlot> long_slots_;
    std::string bytes_;
    std::vector<TokenId> ids_;
};

}  // namespace pylm
