// The merges of a vocabulary, applied to a row of symbols: the step that all kinds of BPE share.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "huge_pages.hpp"
#include "text/shared_array.hpp"
#include "text/simd.hpp"
#include "tokenizer/token_texts.hpp"

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

inline constexpr TokenId kNoToken = std::numeric_limits<TokenId>::max();

// What becomes of a byte that has no symbol: `unknown`, one for a run of such bytes in a row where they are
// fused, or nothing at all, so that its neighbours may merge.
struct MissingBytes {
    TokenId unknown = kNoToken;
    bool fuse = false;
};

// Immutable after construction; all const members may be called from many threads at once.
class MergeTable {
  public:
    // Ids and ranks are below this, so that a merge fits into a word.
    static constexpr std::size_t kLimit = (std::size_t{1} << 21) - 1;

    // `tokens[i]` are the bytes of id i. Throws std::invalid_argument naming the merge: an id out of range,
    // bytes that do not concatenate, a rank with two results; and for kLimit ids or ranks and more.
    MergeTable(const TokenTexts& tokens, std::span<const MergeRule> rules);

    // The table that `write` has put there, for ids below `num_ids`. Throws std::invalid_argument unless every
    // look-up ends, and within the table. `given` are the rules that the table was made of: where it does not say
    // them itself they are written too.
    MergeTable(const SectionFile& file, std::size_t num_ids);
    void write(SectionWriter& out, std::span<const MergeRule> given) const;
    // `given` again. Throws std::invalid_argument for ids that are not below `num_ids`.
    static std::vector<MergeRule> read_given(const SectionFile& file, std::size_t num_ids);

    // Merge neighbours in place: the pair of lowest rank first, of equal ones the leftmost, until none is
    // left. Returns how many symbols remain, at the front. O(n log n) for n symbols.
    std::size_t apply(std::span<TokenId> symbols) const;

    // The same for a row of bytes, of which some may have no symbol; `out` has room for one symbol a byte.
    std::size_t apply_bytes(std::string_view bytes, TokenId* out) const;

    // A short row, and what is left of it.
    struct Row {
        static constexpr std::size_t kMaxSize = 64;
        static constexpr std::size_t kMaxWide = 32;  // of those that are merged side by side
        const char* bytes;  // null where `ids` already has the symbols
        std::size_t size;   // of bytes or symbols, at most kMaxSize; then of symbols
        TokenId* ids;       // room for `size`
    };

    // The same for many rows, their lookups overlapped; at the best level of this machine, or at a given one that it
    // has.
    void apply(std::span<Row> rows) const noexcept { apply(rows, level_); }
    void apply(std::span<Row> rows, SimdLevel level) const noexcept;

    // Say what the symbols of bytes are, kNoToken where one has none: once, before `apply_bytes` and before
    // any use from several threads.
    void set_bytes(std::span<const TokenId, 256> byte_ids, MissingBytes missing = {});

    // Whether one of the bytes has no symbol: such rows are for `apply_bytes`, not for `apply`.
    bool lacks_byte(std::string_view bytes) const noexcept { return has_missing_ && find_missing(bytes); }

  private:
    bool find_missing(std::string_view bytes) const noexcept;
    std::size_t apply_missing(std::string_view bytes, TokenId* out) const;

    struct RowState;
    struct WideState;
    using Rank = std::uint32_t;
    struct Rule {
        TokenId left, right, merged;
    };
    static constexpr Rank kNoRank = kLimit;
    static constexpr unsigned kIdBits = 21;
    static constexpr std::size_t kBucket = 8;

    static std::uint64_t pair_of(TokenId left, TokenId right) noexcept {
        return (static_cast<std::uint64_t>(left) << kIdBits) | right;
    }
    static std::uint64_t hash_of(std::uint64_t pair) noexcept { return pair * 0x9E3779B97F4A7C15ULL; }
    std::size_t bucket_of(std::uint64_t hash) const noexcept {
        return static_cast<std::size_t>(hash >> shift_) & ~(kBucket - 1);
    }
    std::uint32_t tag_of(std::uint64_t hash) const noexcept {
        return static_cast<std::uint32_t>(hash >> 10) >> rank_bits_;
    }
    // A pair whose place shows a rank that is too low: that of another pair with the same tag.
    struct HiddenPair {
        std::uint64_t pair;
        std::uint64_t rank;
        auto operator<=>(const HiddenPair&) const = default;
    };
    using Rules = std::vector<Rule, HugePageAllocator<Rule>>;
    using Slots = std::vector<std::uint32_t, HugePageAllocator<std::uint32_t>>;

    static std::size_t slots_for(std::size_t num_rules) noexcept;
    void set_sizes(std::size_t num_rules, std::size_t num_slots) noexcept;
    void add(Rank rank, Rules& rules, Slots& slots, std::vector<HiddenPair>& hidden) const;
    void check_slots() const;
    void start(RowState& state, Row& row) const noexcept;
    void look_up(RowState& state) const noexcept;
    bool find_best(RowState& state) const noexcept;
    void merge_best(RowState& state) const noexcept;
    void apply_few(std::span<Row> rows) const noexcept;
    void start(WideState& state, std::span<Row* const> rows) const noexcept;
    void look_up(WideState& state) const noexcept;
    bool find_best(WideState& state) const noexcept;
    void merge_best(WideState& state) const noexcept;
    static void finish(WideState& state) noexcept;
    void apply_wide(std::span<Row* const> rows) const noexcept;  // of bytes, up to kMaxWide, in order of size
    std::size_t apply_long(std::span<TokenId> symbols) const;
    bool is_rule_of(Rank rank, TokenId left, TokenId right) const noexcept {
        return rules_[rank].left == left && rules_[rank].right == right;
    }
    Rank find(TokenId left, TokenId right) const noexcept;
    Rank find_hidden(std::uint64_t pair) const noexcept;
    Rank find_bound(std::uint64_t pair) const noexcept;

    SharedArray<Rule> rules_;  // in the order in which they are applied: by rank
    // A pair's tag, then its rank + 1; 0 where free. Small, so that it stays near the processor. A pair lies in
    // its bucket, half a cache line, or in those behind it.
    SharedArray<std::uint32_t> slots_;
    unsigned shift_ = 0;
    unsigned rank_bits_ = 0;
    std::uint64_t no_pair_ = pair_of(kLimit, 0);  // of ids of no vocabulary; its tag is not in its bucket
    SharedArray<HiddenPair> hidden_;  // sorted
    std::array<TokenId, 256> byte_ids_{};
    bool has_missing_ = false;
    MissingBytes missing_;
    SharedArray<Rank> byte_pairs_;  // by left byte * 256 + right byte
    SimdLevel level_ = best_simd_level();
};

}  // namespace pylm
