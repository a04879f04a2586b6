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
#include "tokenizer/token_texts.hpp"
#include "tokenizer/whole_tokens.hpp"

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
    BpeEncoder(TokenTexts tokens, std::span<const MergeRule> merges, Pattern pattern, bool ignore_merges,
               std::optional<MissingBytes> missing = std::nullopt);

    // The encoder that `write` has put there, with the same options. `merges` are those that it was made of.
    // Throws std::invalid_argument for tables that no such encoder has.
    BpeEncoder(const SectionFile& file, TokenTexts tokens, Pattern pattern, bool ignore_merges,
               std::optional<MissingBytes> missing = std::nullopt);
    void write(SectionWriter& out, std::span<const MergeRule> merges) const;
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

    void set_bytes(std::optional<MissingBytes> missing);
    void encode(std::string_view text, Worker& worker, TokenBuffer& out) const;
    TokenId* write_other(Worker& worker, std::size_t piece, TokenId* out, std::size_t begin) const;
    void close_gaps(Worker& worker, TokenBuffer& out) const;
    std::size_t encode_piece(std::string_view piece, TokenId* out) const;
    void take_whole(std::span<MergeTable::Row> rows) const noexcept;

    TokenTexts tokens_;
    Pattern pattern_;
    CutFunction cut_;
    bool ignore_merges_;
    MergeTable merges_;
    WholeTokens whole_tokens_;  // with ignore_merges
    mutable Pool<Worker> workers_;
};

}  // namespace pylm
