// Byte-pair encoding with a given vocabulary: bytes to ids, exactly as the merges say.
#pragma once

#include <cstddef>
#include <cstdint>
#include <limits>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "huge_pages.hpp"
#include "tokenizer/merges.hpp"
#include "tokenizer/piece_cache.hpp"
#include "tokenizer/pool.hpp"
#include "tokenizer/pretokenize.hpp"
#include "tokenizer/token_output.hpp"

namespace pylm {

struct TokenBatch {
    TokenBuffer ids;
    std::vector<std::int64_t> offsets;  // one more than there are texts
};

// Immutable after construction; all const members may be called from many threads at once.
class BpeEncoder {
  public:
    // `tokens[i]` are the bytes of id i (empty where an id is not in use). Every byte must be a token, unless
    // `missing` says what becomes of others. With `ignore_merges`, a piece that is a token is taken whole
    // before any merge. Throws std::invalid_argument naming the entry: a merge with an id out of range or
    // whose bytes do not concatenate, a single byte without a token.
    BpeEncoder(std::vector<std::string> tokens, const std::vector<MergeRule>& merges, Pattern pattern,
               bool ignore_merges, std::optional<MissingBytes> missing = std::nullopt);
    ~BpeEncoder();

    // Ids of one text. Linear in its size, but for pieces of length n: O(n log n).
    TokenBuffer encode(std::string_view text) const;

    // Encode many texts; a large one is cut where no piece can lie across. Neither the result nor the cuts
    // depend on the threads. `end` comes after each text and belongs to it.
    TokenBatch encode_batch(std::span<const std::string_view> texts, unsigned num_threads,
                            std::optional<TokenId> end = std::nullopt) const;

    // Encode the texts between separators, n + 1 for n of them; a single one where `separator` is empty.
    TokenBatch encode_separated(std::string_view texts, std::string_view separator, unsigned num_threads) const;

    // Bytes of a token. Throws std::out_of_range.
    std::string_view token(TokenId id) const;
    std::size_t vocab_size() const noexcept { return tokens_.size(); }

  private:
    struct Worker;
    struct WholeToken {
        std::uint32_t hash = 0;
        TokenId id = std::numeric_limits<TokenId>::max();
    };

    void add_whole_tokens();
    void encode(std::string_view text, Worker& worker, TokenBuffer& out) const;
    TokenId* write_other(Worker& worker, std::size_t piece, TokenId* out, std::size_t begin) const;
    void close_gaps(Worker& worker, TokenBuffer& out) const;
    std::size_t encode_piece(std::string_view piece, TokenId* out) const;
    // The id of the token with these bytes and their hash, or the largest TokenId.
    TokenId find_whole(std::string_view piece, std::uint64_t hash) const noexcept;
    void take_whole(std::span<MergeTable::Row> rows) const noexcept;

    std::vector<std::string> tokens_;
    Pattern pattern_;
    CutFunction cut_;
    bool ignore_merges_;
    MergeTable merges_;
    // With ignore_merges: open addressing, a power of two.
    std::vector<WholeToken, HugePageAllocator<WholeToken>> whole_tokens_;
    mutable Pool<Worker> workers_;
};

}  // namespace pylm
