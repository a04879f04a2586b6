// All different words as one row of symbols in which tokens grow in place.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "tokenizer/word_counter.hpp"

namespace pylm {

// The row. A token of n bytes takes n places: its first and its last hold the id, those between hold nothing
// of interest, so the next token starts n further on and the one before ends one place back: no links. Words
// stand between kBorder, the most frequent first, so that a place tells how often its word occurs, and so that
// the words that most merges touch lie together.
class WordSymbols {
public:
    static constexpr std::uint32_t kBorder = 0xFFFFFFFF;
    static constexpr std::uint32_t kInside = 0xFFFFFFFE;
    static constexpr std::uint32_t kNoId = 0xFFFFFFFF;

    // Bytes without an id are left out, and so are words of fewer than two symbols. Throws
    // std::invalid_argument where there are more than 2^32 - 3 places.
    WordSymbols(WordCounter& words, std::span<const std::uint32_t> byte_ids, bool release);

    std::size_t size() const noexcept { return symbols_.size(); }
    std::uint32_t operator[](std::size_t place) const noexcept { return symbols_[place]; }
    std::uint32_t* data() noexcept { return symbols_.data(); }

    // How often the word at this place occurs.
    std::int64_t weight(std::size_t place) const noexcept {
        std::size_t i = first_run_[place / kBlock];
        while (run_ends_[i] <= place) ++i;
        return weights_[i];
    }

    // Call visit(place, weight) for every place from `begin` to `end`, in order.
    template <typename Visit>
    void visit_weights(std::size_t begin, std::size_t end, Visit&& call) const {
        if (begin >= end) return;
        std::size_t run = first_run_[begin / kBlock];
        for (std::size_t place = begin; place < end; ++place) {
            while (run_ends_[run] <= place) ++run;
            call(place, weights_[run]);
        }
    }

private:
    static constexpr std::size_t kBlock = 64;

    std::vector<std::uint32_t> symbols_;
    // Runs of words that are equally frequent.
    std::vector<std::uint32_t> run_ends_;
    std::vector<std::int64_t> weights_;
    std::vector<std::uint32_t> first_run_;  // the run of each block's first place
};

}  // namespace pylm
