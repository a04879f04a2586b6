// Byte-pair encoding with a given vocabulary: bytes to ids, exactly as the merges say.
#pragma once

#include <cstddef>
#include <cstdint>
#include <limits>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "tokenizer/merges.hpp"
#include "tokenizer/pretokenize.hpp"

namespace pylm {

struct TokenBatch {
    std::vector<TokenId> ids;
    std::vector<std::int64_t> offsets;  // one more than there are texts
};

// Immutable after construction; all const members may be called from many threads at once.
class BpeEncoder {
  public:
    // `tokens[i]` are the bytes of id i (empty where an id is not in use). Every byte that can occur must be
    // a token. With `ignore_merges`, a piece that is a token is taken whole before any merge. Throws
    // std::invalid_argument naming the entry: a merge with an id out of range or whose bytes do not
    // concatenate, a single byte without a token.
    BpeEncoder(std::vector<std::string> tokens, const std::vector<MergeRule>& merges, Pattern pattern,
               bool ignore_merges);

    // Append the ids of one text. Linear in its size, but for pieces of length n: O(n log n).
    void encode(std::string_view text, std::vector<TokenId>& out) const;

    // Encode many texts; text i is data[offsets[i], offsets[i + 1]). The result does not depend on threads.
    TokenBatch encode_batch(std::span<const char> data, std::span<const std::int64_t> offsets,
                            unsigned num_threads) const;
    TokenBatch encode_batch(std::span<const std::string_view> texts, unsigned num_threads) const;

    // Bytes of a token. Throws std::out_of_range.
    std::string_view token(TokenId id) const;
    std::size_t vocab_size() const noexcept { return tokens_.size(); }

  private:
    class PieceCache;

    struct PieceSlot {
        std::uint32_t hash = 0;
        TokenId id = std::numeric_limits<TokenId>::max();
    };

    void encode_cached(std::string_view text, PieceCache& cache, std::vector<TokenId>& out) const;
    void encode_piece(std::string_view piece, std::vector<TokenId>& out) const;
    TokenId find_token(std::string_view bytes) const noexcept;  // id, or the largest TokenId

    std::vector<std::string> tokens_;
    Pattern pattern_;
    bool ignore_merges_;
    TokenId byte_ids_[256];
    MergeTable merges_;
    std::vector<PieceSlot> pieces_;
};

}  // namespace pylm
