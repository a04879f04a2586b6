// Added tokens: words that are cut out of a text before the merges see it, by the rules of Hugging Face's
// `tokenizers`.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "tokenizer/bpe_encode.hpp"

namespace pylm {

struct AddedToken {
    std::string content;       // never empty
    TokenId id = 0;
    bool single_word = false;  // not where a word character stands beside it
    bool lstrip = false;       // takes the white space before it along
    bool rstrip = false;       // and that after it
};

// A token in a text. The range is what it takes of the text, white space included.
struct AddedMatch {
    std::size_t begin;
    std::size_t end;
    std::size_t token;  // place in AddedTokens

    bool operator==(const AddedMatch&) const = default;
};

// Immutable after construction; all const members may be called from many threads at once.
class AddedTokens {
  public:
    // Throws std::invalid_argument for an empty content. Of equal contents the first counts.
    explicit AddedTokens(std::vector<AddedToken> tokens);

    std::size_t size() const noexcept { return tokens_.size(); }
    const AddedToken& operator[](std::size_t token) const noexcept { return tokens_[token]; }

    // Every token in the text, of those with enabled[i] != 0: the leftmost, of those that begin there the
    // longest, then the next behind it. A candidate that is no single word is passed over whole. Linear in the
    // text for tokens of bounded size; a text without their first bytes costs a fraction of a nanosecond a
    // byte.
    std::vector<AddedMatch> find(std::string_view text, std::span<const std::uint8_t> enabled) const;

    // Encode many texts with their added tokens. `encode` turns the stretches between tokens into ids, each as
    // a text of its own, with an end after each as in BpeEncoder; stretches of one text follow each other.
    // `begins` has a byte a stretch, not 0 where it begins a text. The result does not depend on the threads,
    // when that of `encode` does not.
    using Encode = std::function<TokenBatch(std::span<const std::string_view>,
                                            std::span<const std::uint8_t> begins, std::optional<TokenId> end)>;
    TokenBatch encode_batch(std::span<const std::string_view> texts, std::span<const std::uint8_t> begins,
                            std::span<const std::uint8_t> enabled, const Encode& encode,
                            std::optional<TokenId> end, unsigned num_threads) const;

  private:
    struct Node {
        std::uint32_t first_edge = 0;
        std::uint32_t num_edges = 0;
        std::uint32_t token = kNone;
    };
    struct Place {
        std::size_t text;
        AddedMatch match;
    };
    static constexpr std::uint32_t kNone = 0xFFFFFFFF;
    static constexpr std::size_t kFewFirst = 4;

    // The longest enabled token that begins at `begin`: its place, or kNone.
    std::uint32_t longest_at(std::string_view text, std::size_t begin,
                             std::span<const std::uint8_t> enabled) const noexcept;
    std::vector<Place> find_all(std::span<const std::string_view> texts, std::span<const std::uint8_t> enabled,
                                unsigned num_threads) const;
    // The next place at or after `begin` with a byte that some token begins with, or the text's size.
    std::size_t next_candidate(std::string_view text, std::size_t begin) const noexcept;

    std::vector<AddedToken> tokens_;
    std::vector<Node> nodes_;  // a trie, root first
    std::vector<std::pair<std::uint8_t, std::uint32_t>> edges_;
    std::array<std::uint8_t, 256> is_first_{};
    std::array<std::uint8_t, kFewFirst> first_{};  // all first bytes, where they are that few
    std::size_t num_first_ = 0;
};

}  // namespace pylm
