// Token ids back to bytes.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "tokenizer/merges.hpp"
#include "tokenizer/token_texts.hpp"

namespace pylm {

// Immutable after construction; all const members may be called from many threads at once.
class TokenDecoder {
  public:
    // `tokens[i]` are the bytes of id i, empty where it has none; `special` are ids with their text, which
    // hides the bytes in `tokens`. Throws std::invalid_argument for tokens of 4 GiB and more, and for special
    // ids far past the tokens.
    TokenDecoder(const TokenTexts& tokens, std::span<const std::pair<TokenId, std::string>> added,
                 std::span<const TokenId> special);

    // The decoder that `write` has put there. Throws std::invalid_argument for tables that no decoder has.
    explicit TokenDecoder(const SectionFile& file);
    void write(SectionWriter& out) const;

    std::size_t size() const noexcept { return texts_.size(); }

    // Bytes of a token. Throws std::out_of_range for an id that is not in the vocabulary.
    std::string_view token(TokenId id) const {
        check(id);
        return texts_[id];
    }

    // Append the bytes of all ids, in order. With `skip_special`, special ids give none. Throws
    // std::out_of_range, naming the id, for one that is not in the vocabulary. Linear.
    void decode(std::span<const TokenId> ids, bool skip_special, std::string& out) const;

    // Bytes of each id in `ids`. Throws as decode does.
    std::vector<std::uint32_t> lengths(std::span<const TokenId> ids) const;

  private:
    void check(TokenId id) const;

    TokenTexts texts_;
    SharedArray<std::uint8_t> special_;
};

}  // namespace pylm
