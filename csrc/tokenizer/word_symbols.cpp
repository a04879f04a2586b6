#include "tokenizer/word_symbols.hpp"

#include <algorithm>
#include <array>
#include <map>
#include <stdexcept>
#include <utility>

namespace pylm {

namespace {

constexpr std::uint64_t kFewCounts = 4096;  // smaller counts, nearly all, are looked up in an array

// Places that the words of each count take, and later where the next of them goes.
class Places {
public:
    std::uint64_t& operator[](std::uint64_t count) {
        return count < kFewCounts ? small_[count] : large_[count];
    }

    // Call visit(count, places) from the largest count down.
    template <typename Visit>
    void visit_down(Visit&& call) {
        for (auto it = large_.rbegin(); it != large_.rend(); ++it) call(it->first, it->second);
        for (std::uint64_t count = kFewCounts; count-- > 0;)
            if (small_[count] > 0) call(count, small_[count]);
    }

private:
    std::array<std::uint64_t, kFewCounts> small_{};
    std::map<std::uint64_t, std::uint64_t> large_;
};

}  // namespace

WordSymbols::WordSymbols(WordCounter& words, std::span<const std::uint32_t> byte_ids, bool release) {
    const bool all = std::ranges::find(byte_ids, kNoId) == byte_ids.end();
    const auto num_symbols = [&](std::string_view word) {
        if (all) return static_cast<std::uint64_t>(word.size());
        return static_cast<std::uint64_t>(std::ranges::count_if(
            word, [&](char byte) { return byte_ids[static_cast<std::uint8_t>(byte)] != kNoId; }));
    };
    Places places;
    words.visit([&](std::string_view word, std::uint64_t count) {
        const std::uint64_t size = num_symbols(word);
        if (size >= 2) places[count] += size + 1;
    });
    std::uint64_t end = 1;
    places.visit_down([&](std::uint64_t count, std::uint64_t& size) {
        const std::uint64_t start = end;
        end += size;
        if (end > kInside - 1)
            throw std::invalid_argument("different words take more than 2^32 - 3 bytes; train on a sample");
        run_ends_.push_back(static_cast<std::uint32_t>(end));
        weights_.push_back(static_cast<std::int64_t>(count));
        size = start;
    });
    symbols_.resize(end);
    symbols_[0] = kBorder;
    words.visit(
        [&](std::string_view word, std::uint64_t count) {
            if (num_symbols(word) < 2) return;
            std::uint64_t& at = places[count];
            for (const char byte : word) {
                const std::uint32_t id = byte_ids[static_cast<std::uint8_t>(byte)];
                if (id != kNoId) symbols_[at++] = id;
            }
            symbols_[at++] = kBorder;
        },
        release);
    first_run_.reserve(end / kBlock + 1);
    std::uint32_t run = 0;
    for (std::size_t place = 0; place < end; place += kBlock) {
        while (run < run_ends_.size() && run_ends_[run] <= place) ++run;
        first_run_.push_back(run);
    }
}

}  // namespace pylm
