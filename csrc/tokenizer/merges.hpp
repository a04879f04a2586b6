// The merges of a vocabulary, applied to a row of symbols: the step that all kinds of BPE share.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "huge_pages.hpp"

namespace pylm {

using TokenId = std::uint32_t;

// One merge: the ids `left`, `right` become `merged`; a lower rank is applied first. Several merges may share
// a rank if they make the same token.
struct MergeRule {
    TokenId left;
    TokenId right;
    TokenId merged;
    std::uint32_t rank;
};

// Immutable after construction; all const members may be called from many threads at once.
class MergeTable {
  public:
    // Ids and ranks are below this, so that a merge fits into a word.
    static constexpr std::size_t kLimit = (std::size_t{1} << 21) - 1;

    // `tokens[i]` are the bytes of id i. Throws std::invalid_argument naming the merge: an id out of range,
    // bytes that do not concatenate, a rank with two results; and for kLimit ids or ranks and more.
    MergeTable(std::span<const std::string> tokens, std::span<const MergeRule> rules);

    // Merge neighbours in place: the pair of lowest rank first, of equal ones the leftmost, until none is
    // left. Returns how many symbols remain, at the front. O(n log n) for n symbols.
    std::size_t apply(std::span<TokenId> symbols) const;

    // The same for a row of bytes; `out` has room for one symbol a byte.
    std::size_t apply_bytes(std::string_view bytes, TokenId* out) const;

    // A short row, and what is left of it.
    struct Row {
        static constexpr std::size_t kMaxSize = 64;
        const char* bytes;  // null where `ids` already has the symbols
        std::size_t size;   // of bytes or symbols, at most kMaxSize; then of symbols
        TokenId* ids;       // room for `size`
    };

    // The same for many rows, their lookups overlapped: most of the time goes into waiting for memory.
    void apply(std::span<Row* const> rows) const noexcept;

    // Say what the symbols of bytes are: once, before `apply_bytes` and before any use from several threads.
    void set_bytes(std::span<const TokenId, 256> byte_ids);

  private:
    struct RowState;
    using Rank = std::uint32_t;
    static constexpr Rank kNoRank = kLimit;
    static constexpr std::uint64_t kEmpty = std::numeric_limits<std::uint64_t>::max();
    static constexpr unsigned kBits = 21;
    static constexpr std::uint64_t kNoPair = (std::uint64_t{1} << 42) - 2;  // its left id is in no vocabulary
    static constexpr std::size_t kBucket = 4;

    void start(RowState& state, Row& row) const noexcept;
    bool step(RowState& state) const noexcept;
    std::size_t apply_long(std::span<TokenId> symbols) const;
    Rank find(TokenId left, TokenId right) const noexcept;
    Rank find(std::uint64_t pair) const noexcept;
    std::size_t bucket_of(std::uint64_t pair) const noexcept {
        return static_cast<std::size_t>((pair * 0x9E3779B97F4A7C15ULL) >> shift_) & ~(kBucket - 1);
    }

    // left << 42 | right << 21 | rank; open addressing, a power of two. A pair lies in its bucket, half a
    // cache line, or in those behind it.
    std::vector<std::uint64_t, HugePageAllocator<std::uint64_t>> slots_;
    std::vector<TokenId> merged_;  // by rank
    unsigned shift_ = 0;
    std::array<TokenId, 256> byte_ids_{};
    std::vector<Rank> byte_pairs_;  // by left byte * 256 + right byte
};

}  // namespace pylm
