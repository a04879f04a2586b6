// Tokens by their bytes, for vocabularies that take a piece that is a token whole.
#pragma once

#include <cstddef>
#include <cstdint>
#include <limits>
#include <string_view>
#include <vector>

#include "text/shared_array.hpp"
#include "tokenizer/merges.hpp"
#include "tokenizer/token_texts.hpp"

namespace pylm {

// Immutable; holds no bytes of its own.
class WholeTokens {
  public:
    // None.
    WholeTokens() = default;

    // Those of `tokens` with has[id] != 0 and bytes; of equal ones the first is found.
    WholeTokens(const TokenTexts& tokens, const std::vector<std::uint8_t>& has);

    // What `write` has put there, for `num_tokens` tokens. Throws std::invalid_argument unless every look-up ends,
    // and gives one of them.
    WholeTokens(const SectionFile& file, std::size_t num_tokens);
    void write(SectionWriter& out) const;

    // The id, or kNoToken. `hash` is hash_bytes(piece); `tokens` are those that it was made of.
    TokenId find(std::string_view piece, std::uint64_t hash, const TokenTexts& tokens) const noexcept;
    // Fetch what `find` will look at first.
    void prefetch(std::uint64_t hash) const noexcept { __builtin_prefetch(&slots_[hash & (slots_.size() - 1)]); }

  private:
    struct Slot {
        std::uint32_t hash = 0;
        TokenId id = std::numeric_limits<TokenId>::max();
    };
    SharedArray<Slot> slots_;  // open addressing, a power of two, half full
};

}  // namespace pylm
