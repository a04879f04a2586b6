// Names for the pieces between LMS positions of a text (suffix_array.cpp), by a table of the distinct ones.
//
// A piece goes from one LMS position to the next one, both included; the last one to the end of the text. Of
// two different pieces one may begin with the other one: then the longer one is the smaller, as the last symbol of
// the shorter is followed by larger symbols, the same symbol in the longer one by smaller or equal ones.
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
#include "parallel.hpp"

namespace pylm::dedup {

inline constexpr std::size_t kBlock = 1 << 16;

// Call task(begin, end) for every block of [0, size).
template <typename Task>
void parallel_blocks(std::size_t size, unsigned num_threads, Task&& task) {
    parallel_for((size + kBlock - 1) / kBlock, num_threads, [&](std::size_t block) {
        task(block * kBlock, std::min(size, (block + 1) * kBlock));
    });
}

template <typename Symbol, typename Index>
class PieceNames {
public:
    PieceNames(std::span<const Symbol> text, std::size_t num_symbols, unsigned num_threads)
        : text_(text),
          width_(std::max(sizeof(Symbol) == 1 ? 8U : 1U, static_cast<unsigned>(std::bit_width(num_symbols - 1)))),
          step_(64 / width_),
          num_threads_(num_threads) {}

    // Write a name for each of the pieces that begin at `starts`, in rising order, and return the number of
    // names; 0 where too many pieces differ for a table to be worth its time and memory.
    std::size_t name(std::span<const Index> starts, std::span<Index> names) {
        // A table for each part of the text, of which the first one then learns what only others hold.
        const std::size_t count = starts.size() - 1;
        const std::size_t num_parts = count < 2 * kBlock ? 1 : resolve_threads(num_threads_);
        const auto border = [&](std::size_t part) { return part * count / num_parts; };
        std::vector<Table> tables(num_parts);
        std::vector<char> is_small(num_parts);
        parallel_for(num_parts, num_threads_, [&](std::size_t part) {
            is_small[part] = number(starts, names, border(part), border(part + 1), tables[part]);
        });
        if (std::find(is_small.begin(), is_small.end(), 0) != is_small.end()) return 0;
        std::vector<std::vector<Index>> ids(num_parts);
        for (std::size_t part = 1; part < num_parts; ++part) {
            for (const Piece& piece : tables[part].pieces) {
                if (tables[0].is_full(1)) grow(tables[0]);
                ids[part].push_back(find(look(piece.begin, piece.length, tables[0]), tables[0]));
            }
        }
        const Pieces pieces = std::move(tables[0].pieces);
        tables.clear();
        Items items(pieces.size());
        for (std::size_t id = 0; id < items.size(); ++id) {
            items[id] = {word(pieces[id].begin, pieces[id].length), static_cast<Index>(id)};
        }
        sort(items, pieces);
        // The last piece is followed by the end, which is smaller than all.
        const auto last = std::partition_point(items.begin(), items.end(), [&](const Item& item) {
            return is_before_last(pieces[item.id], starts.back());
        });
        const auto num_before = last - items.begin();
        std::vector<Index> ranks(items.size());
        for (std::ptrdiff_t i = 0; i < std::ssize(items); ++i) {
            ranks[items[i].id] = static_cast<Index>(i + (i >= num_before));
        }
        parallel_for(num_parts, num_threads_, [&](std::size_t part) {
            for (Index& id : ids[part]) id = ranks[id];
            const std::vector<Index>& of_part = part == 0 ? ranks : ids[part];
            for (std::size_t i = border(part); i < border(part + 1); ++i) names[i] = of_part[names[i]];
        });
        names.back() = static_cast<Index>(num_before);
        return items.size() + 1;
    }

private:
    struct Piece {
        Index begin;
        Index length;
    };
    using Pieces = std::vector<Piece>;
    struct Slot {
        std::uint64_t key = 0;
        Index length = 0;  // 0: free
        Index id = 0;
    };
    // Distinct pieces by first appearance, and their ids.
    struct Table {
        Pieces pieces;
        std::vector<Slot, HugePageAllocator<Slot>> slots = std::vector<Slot, HugePageAllocator<Slot>>(1 << 10);

        bool is_full(std::size_t more) const noexcept { return 2 * (pieces.size() + more) > slots.size(); }
        std::size_t home(std::uint64_t key, std::size_t length) const noexcept {
            return static_cast<std::size_t>(mix(key + length) >> (65 - std::bit_width(slots.size())));
        }
    };
    // A piece to be looked for.
    struct Look {
        std::uint64_t key;
        std::size_t slot, begin, length;
    };
    struct Item {
        std::uint64_t key;
        Index id;
    };
    using Items = std::vector<Item>;
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
                const std::uint64_t symbol = i < length ? static_cast<std::uint64_t>(text_[begin + i]) : filler;
                symbols = symbols << width_ | symbol;
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

    // Write the ids of the pieces in [first, last), counted from 0 by first appearance; false if too many.
    bool number(std::span<const Index> starts, std::span<Index> ids, std::size_t first, std::size_t last,
                Table& table) const {
        Look batch[kBatch];
        for (std::size_t begin = first; begin < last; begin += kBatch) {
            const std::size_t size = std::min(kBatch, last - begin);
            while (table.is_full(size)) grow(table);
            for (std::size_t i = 0; i < size; ++i) {
                const auto start = static_cast<std::size_t>(starts[begin + i]);
                batch[i] = look(start, static_cast<std::size_t>(starts[begin + i + 1]) - start + 1, table);
                __builtin_prefetch(&table.slots[batch[i].slot]);
            }
            for (std::size_t i = 0; i < size; ++i) ids[begin + i] = find(batch[i], table);
            // Pieces repeat more the longer the text; at 1 in 8 scans are as fast.
            if (table.pieces.size() > starts.size() / 64 + (begin + size - first) / 8) return false;
        }
        return true;
    }

    Look look(std::size_t begin, std::size_t length, const Table& table) const noexcept {
        const std::uint64_t value = key(begin, length);
        return {value, table.home(value, length), begin, length};
    }

    Index find(const Look& wanted, Table& table) const {
        const auto length = static_cast<Index>(wanted.length);
        for (std::size_t at = wanted.slot;; at = (at + 1) & (table.slots.size() - 1)) {
            Slot& slot = table.slots[at];
            if (slot.length == 0) {
                slot = {wanted.key, length, static_cast<Index>(table.pieces.size())};
                table.pieces.push_back({static_cast<Index>(wanted.begin), length});
                return slot.id;
            }
            if (slot.key == wanted.key && slot.length == length &&
                (wanted.length <= step_ ||
                 std::equal(&text_[wanted.begin], &text_[wanted.begin] + wanted.length,
                            &text_[table.pieces[slot.id].begin])))
                return slot.id;
        }
    }

    static void grow(Table& table) {
        auto old = std::move(table.slots);
        table.slots.assign(2 * old.size(), Slot{});
        for (const Slot& slot : old) {
            if (slot.length == 0) continue;
            std::size_t at = table.home(slot.key, static_cast<std::size_t>(slot.length));
            while (table.slots[at].length != 0) at = (at + 1) & (table.slots.size() - 1);
            table.slots[at] = slot;
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
    void sort(std::span<Item> items, const Pieces& pieces) const {
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
                    const Piece& piece = pieces[item.id];
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
    unsigned num_threads_;
};

}  // namespace pylm::dedup
