// Names for the pieces between LMS positions of a text (suffix_array.cpp), by a table of the distinct ones.
//
// A piece goes from one LMS position to the next one, both included; the last one to the end of the text. Of two
// different pieces one may begin with the other one: then the longer one is the smaller, as the last symbol of
// the shorter is followed by larger symbols and the same symbol in the longer one by smaller ones or equal ones.
// So a piece compares as if the largest symbol followed without end. And as the longer one's next symbol is not
// the largest, what is so filled up still tells pieces apart.
#pragma once

#include <algorithm>
#include <array>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <numeric>
#include <span>
#include <utility>
#include <vector>

#include "huge_pages.hpp"

namespace pylm::dedup {

template <typename Symbol, typename Index>
class PieceNames {
public:
    PieceNames(std::span<const Symbol> text, std::size_t num_symbols)
        : text_(text),
          width_(sizeof(Symbol) == 1 ? 8 : std::max(1U, static_cast<unsigned>(std::bit_width(num_symbols - 1)))),
          step_(64 / width_) {}

    // Write a name for each of the pieces that begin at `starts`, in rising order, and return the number of names;
    // 0 where too many pieces differ for a table to be worth its time and memory.
    std::size_t name(std::span<const Index> starts, std::span<Index> names) {
        if (!number(starts, names)) return 0;
        std::vector<Item> items(pieces_.size());
        for (std::size_t id = 0; id < items.size(); ++id) {
            items[id] = {word(pieces_[id].begin, pieces_[id].length), static_cast<Index>(id)};
        }
        sort(items);
        // The last piece is followed by the end, which is smaller than all.
        const auto last = std::partition_point(items.begin(), items.end(), [&](const Item& item) {
            return is_before_last(pieces_[item.id], starts.back());
        });
        const auto border = last - items.begin();
        std::vector<Index> ranks(items.size());
        for (std::ptrdiff_t i = 0; i < std::ssize(items); ++i) {
            ranks[items[i].id] = static_cast<Index>(i + (i >= border));
        }
        for (Index& name : names.first(starts.size() - 1)) name = ranks[name];
        names.back() = static_cast<Index>(border);
        return items.size() + 1;
    }

private:
    struct Piece {
        Index begin;
        Index length;
    };
    struct Slot {
        std::uint64_t key = 0;
        Index length = 0;  // 0: free
        Index id = 0;
    };
    struct Item {
        std::uint64_t key;
        Index id;
    };
    static constexpr std::size_t kBatch = 32;

    // The first symbols of what is left of a piece, as many as fit, the first on top.
    std::uint64_t word(std::size_t begin, std::size_t length) const noexcept {
        if constexpr (sizeof(Symbol) == 1) {
            std::uint64_t bytes;
            if (begin + 8 <= text_.size()) {
                std::memcpy(&bytes, &text_[begin], 8);
                if constexpr (std::endian::native == std::endian::little) bytes = __builtin_bswap64(bytes);
            } else {
                bytes = 0;
                for (std::size_t i = 0; i < 8; ++i)
                    bytes = bytes << 8 | (begin + i < text_.size() ? text_[begin + i] : 0);
            }
            return length >= 8 ? bytes : bytes | ~std::uint64_t{0} >> (8 * length);
        } else {
            const std::uint64_t filler = (std::uint64_t{1} << width_) - 1;
            std::uint64_t symbols = 0;
            for (std::size_t i = 0; i < step_; ++i) {
                symbols = symbols << width_ | (i < length ? static_cast<std::uint64_t>(text_[begin + i]) : filler);
            }
            return symbols;
        }
    }

    static std::uint64_t mix(std::uint64_t value) noexcept {
        value *= 0x9e3779b97f4a7c15;
        return (value ^ value >> 32) * 0xd6e8feb86659fd93;
    }

    // What tells pieces of one length apart: all symbols where they fit into a word, else a hash.
    std::uint64_t key(std::size_t begin, std::size_t length) const noexcept {
        std::uint64_t value = word(begin, length);
        for (std::size_t done = step_; done < length; done += step_) {
            value = mix(value) ^ word(begin + done, length - done);
        }
        return value;
    }

    // Write the ids of all pieces but the last one, by first appearance.
    bool number(std::span<const Index> starts, std::span<Index> ids) {
        struct Next {
            std::uint64_t key;
            std::size_t slot, begin, length;
        };
        Next batch[kBatch];
        const std::size_t count = starts.size() - 1;
        grow(std::max<std::size_t>(64, std::bit_ceil(count / 16)));
        for (std::size_t first = 0; first < count; first += kBatch) {
            const std::size_t size = std::min(kBatch, count - first);
            if (2 * (pieces_.size() + size) > slots_.size()) grow(2 * slots_.size());
            for (std::size_t i = 0; i < size; ++i) {
                const auto begin = static_cast<std::size_t>(starts[first + i]);
                const std::size_t length = static_cast<std::size_t>(starts[first + i + 1]) - begin + 1;
                const std::uint64_t value = key(begin, length);
                batch[i] = {value, home(value, length), begin, length};
                __builtin_prefetch(&slots_[batch[i].slot]);
            }
            for (std::size_t i = 0; i < size; ++i) ids[first + i] = find(batch[i]);
            // Pieces repeat more the longer the text; at 1 in 8 scans are as fast.
            if (pieces_.size() > count / 64 + (first + size) / 8) return false;
        }
        return true;
    }

    template <typename Next>
    Index find(const Next& next) {
        const auto length = static_cast<Index>(next.length);
        for (std::size_t at = next.slot;; at = (at + 1) & (slots_.size() - 1)) {
            Slot& slot = slots_[at];
            if (slot.length == 0) {
                slot = {next.key, length, static_cast<Index>(pieces_.size())};
                pieces_.push_back({static_cast<Index>(next.begin), length});
                return slot.id;
            }
            if (slot.key == next.key && slot.length == length &&
                (next.length <= step_ || std::equal(&text_[next.begin], &text_[next.begin] + next.length,
                                                    &text_[pieces_[slot.id].begin])))
                return slot.id;
        }
    }

    std::size_t home(std::uint64_t value, std::size_t length) const noexcept {
        return static_cast<std::size_t>(mix(value + length) >> shift_);
    }

    void grow(std::size_t size) {
        Slots old(size);
        old.swap(slots_);
        shift_ = 64 - static_cast<unsigned>(std::countr_zero(size));
        for (const Slot& slot : old) {
            if (slot.length == 0) continue;
            std::size_t at = home(slot.key, static_cast<std::size_t>(slot.length));
            while (slots_[at].length != 0) at = (at + 1) & (size - 1);
            slots_[at] = slot;
        }
    }

    static void sort_by_key(std::span<Item> items) {
        if (items.size() < 2048) {
            std::sort(items.begin(), items.end(), [](const Item& a, const Item& b) { return a.key < b.key; });
            return;
        }
        // Radix sort, the lowest byte first.
        std::array<std::array<std::size_t, 256>, 8> counts{};
        for (const Item& item : items) {
            for (unsigned byte = 0; byte < 8; ++byte) ++counts[byte][item.key >> (8 * byte) & 255];
        }
        std::vector<Item> other(items.size());
        std::span<Item> from = items;
        std::span<Item> to = other;
        for (unsigned byte = 0; byte < 8; ++byte) {
            auto& places = counts[byte];
            if (places[from[0].key >> (8 * byte) & 255] == from.size()) continue;
            std::exclusive_scan(places.begin(), places.end(), places.begin(), std::size_t{0});
            for (const Item& item : from) to[places[item.key >> (8 * byte) & 255]++] = item;
            std::swap(from, to);
        }
        if (from.data() != items.data()) std::copy(from.begin(), from.end(), items.begin());
    }

    // By all symbols, as many at a time as a key holds. Pieces may be long and alike, so no recursion.
    void sort(std::span<Item> items) {
        struct Part {
            std::size_t begin, end, offset;
        };
        std::vector<Part> parts = {{0, items.size(), step_}};
        while (!parts.empty()) {
            const Part part = parts.back();
            parts.pop_back();
            sort_by_key(items.subspan(part.begin, part.end - part.begin));
            for (std::size_t begin = part.begin, end; begin < part.end; begin = end) {
                for (end = begin + 1; end < part.end && items[end].key == items[begin].key;) ++end;
                if (end - begin == 1) continue;
                parts.push_back({begin, end, part.offset + step_});
                for (Item& item : items.subspan(begin, end - begin)) {
                    const Piece& piece = pieces_[item.id];
                    const auto done = std::min(part.offset, static_cast<std::size_t>(piece.length));
                    item.key = word(piece.begin + done, piece.length - done);
                }
            }
        }
    }

    bool is_before_last(const Piece& piece, std::size_t last) const noexcept {
        const auto a = text_.subspan(piece.begin, piece.length);
        const auto b = text_.subspan(last);
        const auto [x, y] = std::mismatch(a.begin(), a.end(), b.begin(), b.end());
        return x != a.end() && y != b.end() && *x < *y;
    }

    std::span<const Symbol> text_;
    unsigned width_;    // bits a symbol in a word
    std::size_t step_;  // symbols a word
    std::vector<Piece> pieces_;
    using Slots = std::vector<Slot, HugePageAllocator<Slot>>;
    Slots slots_;
    unsigned shift_ = 0;
};

}  // namespace pylm::dedup
