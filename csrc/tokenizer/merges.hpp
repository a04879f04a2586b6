// The merges of a vocabulary, applied to a row of symbols: the step that all kinds of BPE share.
#pragma once

#include <cstddef>
#include <cstdint>
#include <limits>
#include <span>
#include <string>
#include <vector>

namespace pylm {

using TokenId = std::uint32_t;

// One merge: the ids `left`, `right` become `merged`; a lower rank is applied first.
struct MergeRule {
    TokenId left;
    TokenId right;
    TokenId merged;
    std::uint32_t rank;
};

// Immutable after construction; all const members may be called from many threads at once.
class MergeTable {
  public:
    // `tokens[i]` are the bytes of id i. Throws std::invalid_argument naming the merge: an id out of range, or
    // bytes that do not concatenate.
    MergeTable(std::span<const std::string> tokens, std::span<const MergeRule> rules);

    // Merge neighbours in place: the pair of lowest rank first, of equal ones the leftmost, until none is
    // left. Returns how many symbols remain, at the front. O(n log n) for n symbols.
    std::size_t apply(std::span<TokenId> symbols) const;

  private:
    static constexpr std::uint64_t kNoPair = std::numeric_limits<std::uint64_t>::max();
    struct Slot {
        std::uint64_t key = kNoPair;  // left << 32 | right
        std::uint64_t value = 0;      // rank << 32 | merged
    };

    std::size_t apply_short(std::span<TokenId> symbols) const noexcept;
    std::size_t apply_long(std::span<TokenId> symbols) const;
    std::uint64_t find(TokenId left, TokenId right) const noexcept;  // value, or kNoPair

    std::vector<Slot> slots_;
};

}  // namespace pylm
