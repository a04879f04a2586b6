// SA-IS (Nong, Zhang, Chan 2009). A suffix is S-type when it is smaller than the next one, else L-type; an
// S-type suffix behind an L-type one is LMS (leftmost S). Sorted LMS suffixes give the order of all others in
// two scans, and are themselves sorted as a text of names of the pieces between them, a third as long.
//
// Three things make it fast:
// - An entry's sign bit says that the scan at work has nothing to do with it, and what the scan will read is
//   fetched ahead (as in Yuta Mori's sais and Ilya Grebnov's libsais).
// - Pieces are short and repeat. A hash table numbers them in one pass over the text, and only the distinct
//   ones are sorted. Where they are too many for a small table, the scans sort them, as in the paper.
// - Large pages.
#include "dedup/suffix_array.hpp"

#include <algorithm>
#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <limits>
#include <stdexcept>
#include <string>
#include <vector>

#include "dedup/piece_names.hpp"
#include "huge_pages.hpp"
#include "interrupt.hpp"
#include "parallel.hpp"

namespace pylm::dedup {
namespace {

constexpr std::size_t kAhead = 32;  // entries between a prefetch and its use
constexpr std::size_t kInterruptSteps = std::size_t{1} << 22;  // a fraction of a second

template <typename Symbol, typename Index>
class Sorter {
public:
    // Symbols are less than `num_symbols`; `suffixes` is as long as the text.
    Sorter(std::span<const Symbol> text, std::size_t num_symbols, std::span<Index> suffixes,
           unsigned num_threads)
        : text_(text), suffixes_(suffixes), ends_(num_symbols), num_threads_(num_threads) {
        if constexpr (sizeof(Symbol) == 1) {
            // Four tables: a symbol that follows itself need not wait for its own count.
            std::array<std::array<Index, 256>, 4> counts{};
            for (std::size_t i = 0; i < text_.size(); ++i) ++counts[i % 4][text_[i]];
            for (const auto& table : counts) {
                std::transform(table.begin(), table.end(), ends_.begin(), ends_.begin(), std::plus());
            }
        } else {
            for (const Symbol symbol : text_) ++ends_[symbol];
        }
        Index end = 0;
        for (Index& count : ends_) count = end += count;
    }

    void sort() {
        const Positions starts = list_lms();
        const std::size_t count = starts.size();
        const std::span<Index> order = suffixes_.first(count);
        if (count > 1) {
            const std::span<Index> names = suffixes_.last(count);
            const std::size_t num_names = name_pieces(starts);
            if (num_names == count) {
                for (std::size_t i = 0; i < count; ++i) order[names[i]] = static_cast<Index>(i);
            } else {
                Sorter<Index, Index>(names, num_names, order, num_threads_).sort();
            }
            parallel_blocks(count, num_threads_, [&](std::size_t begin, std::size_t end) {
                for (std::size_t i = begin; i < end; ++i) order[i] = starts[order[i]];
            });
        } else if (count == 1) {
            order[0] = starts[0];
        }
        place(count);
        induce<false>();
    }

private:
    using Positions = std::vector<Index, HugePageAllocator<Index>>;
    static constexpr Index kFlag = std::numeric_limits<Index>::min();
    static constexpr Index kValue = std::numeric_limits<Index>::max();

    // The LMS positions, rising. Spoils `suffixes`.
    Positions list_lms() {
        // As few blocks as there are threads: each looks ahead for its last suffix's type, maybe to the end.
        const std::size_t size = text_.size();
        const std::size_t num_blocks = size < 2 * kBlock ? 1 : resolve_threads(num_threads_);
        const auto border = [&](std::size_t block) { return block * (size - 1) / num_blocks; };
        std::vector<std::size_t> slots(num_blocks);
        parallel_for(num_blocks, num_threads_, [&](std::size_t block) {
            const std::size_t end = border(block + 1);
            std::size_t slot = end + 1;
            bool next_is_s = is_s_type(end);
            for (std::size_t i = end; i > border(block); --i) {
                // Types are as good as random, so no branches: slots are kept if they hold an LMS position.
                const bool is_s = text_[i - 1] < text_[i] || (text_[i - 1] == text_[i] && next_is_s);
                suffixes_[slot - 1] = static_cast<Index>(i);
                slot -= next_is_s && !is_s;
                next_is_s = is_s;
            }
            slots[block] = slot;
        });
        std::vector<std::size_t> offsets(num_blocks + 1);
        for (std::size_t block = 0; block < num_blocks; ++block)
            offsets[block + 1] = offsets[block] + border(block + 1) + 1 - slots[block];
        Positions starts(offsets.back());
        parallel_for(num_blocks, num_threads_, [&](std::size_t block) {
            std::copy_n(suffixes_.data() + slots[block], offsets[block + 1] - offsets[block],
                        starts.data() + offsets[block]);
        });
        return starts;
    }

    bool is_s_type(std::size_t i) const noexcept {
        while (i + 1 < text_.size() && text_[i] == text_[i + 1]) ++i;
        return i + 1 < text_.size() && text_[i] < text_[i + 1];
    }

    // Write the names of the pieces that begin at `starts`, 0, 1, ... in their order, to the end of `suffixes`;
    // return how many there are.
    std::size_t name_pieces(const Positions& starts) {
        const std::size_t num_names = PieceNames<Symbol, Index>(text_, ends_.size(), num_threads_)
                                          .name(starts, suffixes_.last(starts.size()));
        return num_names != 0 ? num_names : name_by_scans(starts);
    }

    std::size_t name_by_scans(const Positions& starts) {
        const std::size_t size = text_.size();
        const std::size_t count = starts.size();
        std::fill(suffixes_.begin(), suffixes_.end(), Index{0});
        std::vector<Index> tails = ends_;
        for (const Index start : starts) suffixes_[--tails[text_[start]]] = start;
        induce<true>();
        // Only LMS positions are left, flagged, in the order of their pieces.
        std::size_t found = 0;
        for (std::size_t i = 0; i < size; ++i) {
            if (suffixes_[i] < 0) suffixes_[found++] = suffixes_[i] & kValue;
        }
        // LMS positions are at least two apart, so half of each is a place of its own behind the list: for the
        // piece's length, then for its name.
        const std::span<Index> order = suffixes_.first(count);
        const std::span<Index> table = suffixes_.subspan(count);
        std::fill(table.begin(), table.end(), Index{-1});
        for (std::size_t i = 0; i + 1 < count; ++i) table[starts[i] / 2] = starts[i + 1] - starts[i] + 1;
        table[starts.back() / 2] = 0;
        Index name = -1;
        std::size_t previous = 0;
        std::size_t previous_length = 0;
        for (std::size_t i = 0; i < count; ++i) {
            if (i + kAhead < count) {
                __builtin_prefetch(&table[order[i + kAhead] / 2]);
                __builtin_prefetch(&text_[order[i + kAhead]]);
            }
            const auto position = static_cast<std::size_t>(order[i]);
            const auto length = static_cast<std::size_t>(table[position / 2]);
            // The last piece, of length 0, is like no other one.
            const bool is_equal = length != 0 && length == previous_length &&
                                  std::equal(&text_[position], &text_[position] + length, &text_[previous]);
            name += !is_equal;
            table[position / 2] = name;
            previous = position;
            previous_length = length;
        }
        std::size_t slot = size;
        for (std::size_t i = size; i-- > count;) {
            if (suffixes_[i] >= 0) suffixes_[--slot] = suffixes_[i];
        }
        return static_cast<std::size_t>(name) + 1;
    }

    // Move the first `count` entries, in order, to the ends of the buckets of their first symbols.
    void place(std::size_t count) {
        std::fill(suffixes_.begin() + static_cast<std::ptrdiff_t>(count), suffixes_.end(), Index{0});
        if constexpr (sizeof(Symbol) <= 2) {
            for (std::size_t symbol = ends_.size(); symbol-- > 0 && count > 0;) {
                const auto end = suffixes_.begin() + static_cast<std::ptrdiff_t>(count);
                const auto begin = std::partition_point(
                    suffixes_.begin(), end, [&](Index position) { return text_[position] < symbol; });
                const auto to = std::move_backward(begin, end, suffixes_.begin() + ends_[symbol]);
                std::fill(begin, std::min(end, to), Index{0});
                count = static_cast<std::size_t>(begin - suffixes_.begin());
            }
        } else {
            std::vector<Index> tails = ends_;
            for (std::size_t i = count; i-- > 0;) {
                if (i >= kAhead) __builtin_prefetch(&text_[suffixes_[i - kAhead]]);
                const Index position = suffixes_[i];
                suffixes_[i] = 0;
                suffixes_[--tails[text_[position]]] = position;
            }
        }
    }

    // From LMS suffixes at the ends of their buckets and zeros elsewhere, sort all suffixes; or, with
    // `pieces_only`, leave nothing but LMS positions, flagged, by the order of their pieces.
    template <bool pieces_only>
    void induce() {
        const std::size_t size = text_.size();
        std::vector<Index> buckets(ends_.size());
        std::copy(ends_.begin(), ends_.end() - 1, buckets.begin() + 1);
        const auto push_l = [&](Index position) {
            const Symbol symbol = text_[position];
            const bool is_last = position > 0 && text_[position - 1] < symbol;
            suffixes_[buckets[symbol]++] = is_last ? position | kFlag : position;
        };
        push_l(static_cast<Index>(size - 1));
        for (std::size_t i = 0; i < size; ++i) {
            if (i % kInterruptSteps == 0) check_interrupt();
            prefetch<1>(i, buckets);
            const Index entry = suffixes_[i];
            if (pieces_only) {
                suffixes_[i] = entry < 0 ? entry & kValue : 0;
            } else {
                suffixes_[i] = entry ^ kFlag;
            }
            if (entry > 0) push_l(entry - 1);
        }
        buckets = ends_;
        for (std::size_t i = size; i-- > 0;) {
            if (i % kInterruptSteps == 0) check_interrupt();
            prefetch<-1>(i, buckets);
            const Index entry = suffixes_[i];
            if (pieces_only) {
                suffixes_[i] = entry < 0 ? entry : 0;
            } else {
                suffixes_[i] = entry & kValue;
            }
            if (entry > 0) {
                const Index position = entry - 1;
                const Symbol symbol = text_[position];
                const bool is_last = position > 0 && text_[position - 1] > symbol;
                suffixes_[--buckets[symbol]] = is_last ? position | kFlag : position;
            }
        }
    }

    // Fetch what the entries ahead of i will need. Entries still to be written are missed: that costs only time.
    template <int step>
    void prefetch(std::size_t i, const std::vector<Index>& buckets) const noexcept {
        const std::size_t size = text_.size();
        const std::size_t far = i + step * 2 * static_cast<std::ptrdiff_t>(kAhead);
        if (far >= size) return;  // below 0 too
        const Index entry = suffixes_[far];
        __builtin_prefetch(entry > 0 ? &text_[entry - 1] : nullptr);
        if constexpr (sizeof(Symbol) > 2) {
            const Index near = suffixes_[i + step * static_cast<std::ptrdiff_t>(kAhead)];
            if (near > 0) __builtin_prefetch(&buckets[text_[near - 1]], 1);
        }
    }

    std::span<const Symbol> text_;
    std::span<Index> suffixes_;
    std::vector<Index> ends_;  // of every symbol's bucket
    unsigned num_threads_;
};

}  // namespace

template <typename Symbol, typename Index>
void suffix_array(std::span<const Symbol> text, std::span<Index> suffixes, unsigned num_threads) {
    if (suffixes.size() != text.size()) throw std::invalid_argument("suffixes: expected as many as symbols");
    if (text.size() > static_cast<std::size_t>(std::numeric_limits<Index>::max()))
        throw std::invalid_argument("text: too long for the index");
    if (text.empty()) return;
    if constexpr (sizeof(Symbol) <= 2) {
        const std::size_t num_symbols = std::size_t{1} << (8 * sizeof(Symbol));
        Sorter<Symbol, Index>(text, num_symbols, suffixes, num_threads).sort();
    } else {
        const std::size_t num_symbols = std::size_t{*std::max_element(text.begin(), text.end())} + 1;
        if (num_symbols <= std::max<std::size_t>(text.size(), 1024)) {
            Sorter<Symbol, Index>(text, num_symbols, suffixes, num_threads).sort();
            return;
        }
        std::vector<Symbol> values(text.begin(), text.end());
        std::sort(values.begin(), values.end());
        values.erase(std::unique(values.begin(), values.end()), values.end());
        std::vector<Symbol> ranks(text.size());
        parallel_blocks(text.size(), num_threads, [&](std::size_t begin, std::size_t end) {
            for (std::size_t i = begin; i < end; ++i) {
                const auto found = std::lower_bound(values.begin(), values.end(), text[i]);
                ranks[i] = static_cast<Symbol>(found - values.begin());
            }
        });
        Sorter<Symbol, Index>(ranks, values.size(), suffixes, num_threads).sort();
    }
}

template <typename Symbol, typename Index>
void lcp_array(std::span<const Symbol> text, std::span<const Index> suffixes, std::span<Index> lcp,
               unsigned num_threads) {
    const std::size_t size = text.size();
    if (suffixes.size() != size || lcp.size() != size)
        throw std::invalid_argument("suffix_array: expected " + std::to_string(size) +
                                    " entries, one a symbol, got " + std::to_string(suffixes.size()));
    if (size == 0) return;
    // As few blocks as there are threads: in the second step each begins with a comparison from the start,
    // which may be as long as the text.
    const std::size_t block_size = std::max(kBlock, size / resolve_threads(num_threads) + 1);
    const auto for_blocks = [&](auto&& task) {
        parallel_for((size + block_size - 1) / block_size, num_threads, [&](std::size_t block) {
            task(block * block_size, std::min(size, (block + 1) * block_size));
        });
    };
    // For every suffix the one before it in the order, then in its place their common length. From one suffix
    // to the next of the text that falls by one at most, so one pass finds all.
    std::vector<Index, HugePageAllocator<Index>> shared(size);
    for_blocks([&](std::size_t begin, std::size_t end) {
        for (std::size_t i = begin; i < end; ++i) {
            const Index suffix = suffixes[i];
            if (suffix < 0 || static_cast<std::size_t>(suffix) >= size)
                throw std::invalid_argument("suffix_array: entry " + std::to_string(i) + " is " +
                                            std::to_string(suffix) + ", expected one of 0 to " +
                                            std::to_string(size - 1));
            // Atomic, as entries that occur twice are not refused.
            std::atomic_ref(shared[suffix]).store(i == 0 ? -1 : suffixes[i - 1], std::memory_order_relaxed);
        }
    });
    for_blocks([&](std::size_t begin, std::size_t end) {
        std::size_t length = 0;
        for (std::size_t i = begin; i < end; ++i) {
            if (i + kAhead < end && shared[i + kAhead] >= 0) __builtin_prefetch(&text[shared[i + kAhead]]);
            if (shared[i] < 0) {
                shared[i] = 0;
                length = 0;
                continue;
            }
            const auto previous = static_cast<std::size_t>(shared[i]);
            const std::size_t most = size - std::max(i, previous);
            length = std::min(length, most);
            while (length < most && text[i + length] == text[previous + length]) ++length;
            shared[i] = static_cast<Index>(length);
            length -= length > 0;
        }
    });
    for_blocks([&](std::size_t begin, std::size_t end) {
        for (std::size_t i = begin; i < end; ++i) lcp[i] = shared[suffixes[i]];
    });
}

template void suffix_array(std::span<const std::uint8_t>, std::span<std::int32_t>, unsigned);
template void suffix_array(std::span<const std::uint8_t>, std::span<std::int64_t>, unsigned);
template void suffix_array(std::span<const std::uint16_t>, std::span<std::int32_t>, unsigned);
template void suffix_array(std::span<const std::uint16_t>, std::span<std::int64_t>, unsigned);
template void suffix_array(std::span<const std::uint32_t>, std::span<std::int32_t>, unsigned);
template void suffix_array(std::span<const std::uint32_t>, std::span<std::int64_t>, unsigned);
template void lcp_array(std::span<const std::uint8_t>, std::span<const std::int32_t>, std::span<std::int32_t>,
                        unsigned);
template void lcp_array(std::span<const std::uint8_t>, std::span<const std::int64_t>, std::span<std::int64_t>,
                        unsigned);
template void lcp_array(std::span<const std::uint16_t>, std::span<const std::int32_t>, std::span<std::int32_t>,
                        unsigned);
template void lcp_array(std::span<const std::uint16_t>, std::span<const std::int64_t>, std::span<std::int64_t>,
                        unsigned);
template void lcp_array(std::span<const std::uint32_t>, std::span<const std::int32_t>, std::span<std::int32_t>,
                        unsigned);
template void lcp_array(std::span<const std::uint32_t>, std::span<const std::int64_t>, std::span<std::int64_t>,
                        unsigned);

}  // namespace pylm::dedup
