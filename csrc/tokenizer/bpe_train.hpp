// Learning merges from text: word counts first, then the most frequent pair again and again.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <span>
#include <string>
#include <string_view>
#include <unordered_map>
#include <utility>
#include <vector>

#include "tokenizer/pretokenize.hpp"

namespace pylm {

// Counts pieces of text. Holds each different piece once, never the text.
class WordCounter {
  public:
    explicit WordCounter(Pattern pattern) : pattern_(pattern) {}

    // Count the pieces of these texts, in parallel. The result does not depend on the threads.
    void add(std::span<const std::string_view> texts, unsigned num_threads);

    // Different pieces with their counts, sorted by bytes.
    std::vector<std::pair<std::string, std::uint64_t>> sorted() const;

  private:
    struct Hash {
        using is_transparent = void;
        std::size_t operator()(std::string_view text) const noexcept;
    };
    using Counts = std::unordered_map<std::string, std::uint64_t, Hash, std::equal_to<>>;

    Pattern pattern_;
    Counts counts_;
};

struct TrainOptions {
    std::size_t num_merges = 0;           // most merges to learn
    std::uint64_t min_frequency = 2;      // a pair seen less often is not merged
    std::vector<std::uint32_t> byte_ids;  // id of each of the 256 bytes
    std::uint32_t first_id = 256;         // id of the first merge's result; later ones count up
    std::function<void()> check;          // called now and then; may throw to stop (signals)
};

// Learn merges: the pair with the largest count first, among equals the one with the smallest ids (left,
// then right), as Hugging Face's trainer does. Returns (left, right) in order; merge i makes first_id + i.
// Throws std::invalid_argument for 2^32 ids or different words and more, and what options.check throws.
std::vector<std::pair<std::uint32_t, std::uint32_t>> train_bpe(
    std::span<const std::pair<std::string, std::uint64_t>> words, const TrainOptions& options);

}  // namespace pylm
