// What both ways of finding repeated substrings share: texts as one sequence of places, and a bit for every
// window.
#pragma once

#include <algorithm>
#include <atomic>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string_view>
#include <vector>

#include "dedup/substring.hpp"
#include "huge_pages.hpp"

namespace pylm::dedup {

// The texts with at least one window, sources before the others; places count their symbols end to end.
class Documents {
public:
    // A place in the text that holds it.
    struct Place {
        const char* at;
        std::size_t before;  // symbols of the text before the place
        std::size_t behind;  // and from it to the end
    };

    // The views must stay valid.
    Documents(std::span<const std::string_view> sources, std::span<const std::string_view> texts,
              std::size_t length, std::size_t symbol_bytes)
        : length_(length), shift_(static_cast<unsigned>(std::countr_zero(symbol_bytes))) {
        append(sources);
        first_text_ = data_.size();
        sources_end_ = starts_.back();
        append(texts);
        index_blocks();
    }

    std::size_t length() const noexcept { return length_; }
    unsigned shift() const noexcept { return shift_; }  // bytes = symbols << shift
    std::size_t count() const noexcept { return data_.size(); }
    std::size_t first_text() const noexcept { return first_text_; }  // the sources are those before
    std::size_t sources_end() const noexcept { return sources_end_; }
    std::size_t num_places() const noexcept { return starts_.back(); }

    std::size_t index(std::size_t document) const noexcept { return indices_[document]; }
    const char* data(std::size_t document) const noexcept { return data_[document]; }
    std::size_t start(std::size_t document) const noexcept { return starts_[document]; }
    std::size_t end(std::size_t document) const noexcept { return starts_[document + 1]; }
    // The place behind the last window.
    std::size_t windows_end(std::size_t document) const noexcept { return end(document) - length_ + 1; }

    std::size_t document_at(std::size_t place) const noexcept {
        const std::size_t block = place >> block_shift_;
        const auto* first = starts_.data() + blocks_[block] + 1;
        const auto* last = starts_.data() + blocks_[block + 1] + 1;
        return static_cast<std::size_t>(std::upper_bound(first, last, place) - starts_.data()) - 1;
    }
    Place place(std::size_t place) const noexcept {
        const std::size_t document = document_at(place);
        const std::size_t before = place - start(document);
        return {data_[document] + (before << shift_), before, end(document) - place};
    }

private:
    void append(std::span<const std::string_view> texts) {
        for (std::size_t i = 0; i < texts.size(); ++i) {
            const std::size_t size = texts[i].size() >> shift_;
            if (size < length_) continue;
            data_.push_back(texts[i].data());
            indices_.push_back(i);
            starts_.push_back(starts_.back() + size);
        }
    }
    // About one document a block, which is where a search begins.
    void index_blocks() {
        if (data_.empty()) return;
        block_shift_ = static_cast<unsigned>(std::bit_width(num_places() / data_.size()));
        const std::size_t num_blocks = (num_places() >> block_shift_) + 1;
        blocks_.reserve(num_blocks + 1);
        std::size_t document = 0;
        for (std::size_t block = 0; block < num_blocks; ++block) {
            while (document + 1 < data_.size() && end(document) <= block << block_shift_) ++document;
            blocks_.push_back(document);
        }
        blocks_.push_back(data_.size() - 1);
    }

    std::size_t length_;
    unsigned shift_;
    std::vector<const char*> data_;
    std::vector<std::size_t> indices_;
    std::vector<std::size_t> starts_{0};
    std::size_t first_text_ = 0;
    std::size_t sources_end_ = 0;
    unsigned block_shift_ = 0;
    std::vector<std::size_t> blocks_;  // the document that holds a block's first place
};

// A bit for the window at every place. Threads may set and read at the same time.
class WindowBits {
public:
    explicit WindowBits(std::size_t size) : words_(size / 64 + 1) {}

    // Ranges [first, last], not empty.
    void set(std::size_t first, std::size_t last) noexcept {
        each_word(first, last, [&](std::size_t word, std::uint64_t mask) {
            if ((load(word) & mask) != mask) words_[word].fetch_or(mask, std::memory_order_relaxed);
            return true;
        });
    }
    bool all(std::size_t first, std::size_t last) const noexcept {
        return each_word(first, last,
                         [&](std::size_t word, std::uint64_t mask) { return (load(word) & mask) == mask; });
    }
    // How many places in a row are not set: from `place` up, or from it down; `limit` at most.
    std::size_t num_clear_up(std::size_t place, std::size_t limit) const noexcept {
        return std::min(next(place, place + limit, true) - place, limit);
    }
    std::size_t num_clear_down(std::size_t place, std::size_t limit) const noexcept {
        std::size_t count = 0;
        while (count < limit) {
            const std::size_t bit = (place - count) % 64;
            const std::uint64_t below = load((place - count) / 64) << (63 - bit);
            count += std::min<std::size_t>(static_cast<std::size_t>(std::countl_zero(below)), bit + 1);
            if (below != 0) break;
        }
        return std::min(count, limit);
    }
    // The first place from `place` on that is set or not, as `value` says; `end` where there is none before.
    std::size_t next(std::size_t place, std::size_t end, bool value) const noexcept {
        while (place < end) {
            const std::uint64_t word = (value ? load(place / 64) : ~load(place / 64)) >> (place % 64);
            if (word != 0) return std::min(end, place + static_cast<std::size_t>(std::countr_zero(word)));
            place += 64 - place % 64;
        }
        return end;
    }
    void prefetch(std::size_t place) const noexcept { __builtin_prefetch(&words_[place / 64]); }

private:
    std::uint64_t load(std::size_t word) const noexcept {
        return words_[word].load(std::memory_order_relaxed);
    }
    template <typename Call>
    static bool each_word(std::size_t first, std::size_t last, Call&& call) noexcept {
        for (std::size_t word = first / 64; word <= last / 64; ++word) {
            std::uint64_t mask = ~std::uint64_t{0};
            if (word == first / 64) mask &= ~std::uint64_t{0} << (first % 64);
            if (word == last / 64) mask &= ~std::uint64_t{0} >> (63 - last % 64);
            if (!call(word, mask)) return false;
        }
        return true;
    }

    std::vector<std::atomic<std::uint64_t>, HugePageAllocator<std::atomic<std::uint64_t>>> words_;
};

// What is known of windows.
class WindowMarks {
public:
    WindowMarks(const Documents& documents, bool first_stays)
        : later_(documents.num_places()), repeated_(first_stays ? 0 : documents.num_places()),
          first_stays_(first_stays) {
        if (documents.length() == 1) return;
        for (std::size_t i = 0; i < documents.count(); ++i)
            later_.set(documents.windows_end(i), documents.end(i) - 1);
    }

    // Windows that occurred earlier, and places where no window begins, for lack of symbols.
    const WindowBits& later() const noexcept { return later_; }
    const WindowBits& removed() const noexcept { return first_stays_ ? later_ : repeated_; }

    // `count` windows from `place` on equal those from the smaller `earlier` on.
    void set_equal(std::size_t place, std::size_t earlier, std::size_t count) noexcept {
        later_.set(place, place + count - 1);
        if (first_stays_) return;
        repeated_.set(place, place + count - 1);
        repeated_.set(earlier, earlier + count - 1);
    }

private:
    WindowBits later_;
    WindowBits repeated_;
    bool first_stays_;
};

// Where the well-formed character begins that `place` lies inside of, and where it ends; both `place` where
// there is none.
struct Character {
    std::size_t begin;
    std::size_t end;
};
Character character_around(std::string_view text, std::size_t place) noexcept;

// With sources, a place of them counts as earlier, and no other one does. `marks` begins clear.
void mark_by_anchors(const Documents& documents, bool has_sources, const SubstringOptions& options, WindowMarks& marks);
void mark_by_suffix_array(const Documents& documents, bool has_sources, const SubstringOptions& options,
                          WindowMarks& marks);

// What the removed windows of the texts cover; with `on_characters`, ends inside a character move inward.
Spans spans_of(const Documents& documents, const WindowBits& removed, bool on_characters);

}  // namespace pylm::dedup
