#include "tokenizer/merges.hpp"

#include <algorithm>
#include <bit>
#include <cstring>
#include <cstdint>
#include <functional>
#include <stdexcept>
#include <utility>

#include "parallel.hpp"
#include "tokenizer/section_file.hpp"

namespace pylm {

namespace {

constexpr TokenId kNone = std::numeric_limits<TokenId>::max();

// Rank and place of a pair in one number, so that the smallest has the lowest rank, then the leftmost place.
constexpr unsigned kPlaceBits = 6;
constexpr std::uint32_t candidate(std::uint32_t rank, std::size_t place) noexcept {
    return (rank << kPlaceBits) | static_cast<std::uint32_t>(place);
}

constexpr auto kNoCandidates = [] {
    std::array<std::uint32_t, 1U << kPlaceBits> candidates{};
    for (std::size_t i = 0; i < candidates.size(); ++i) candidates[i] = candidate(MergeTable::kLimit, i);
    return candidates;
}();

// Candidates are looked at this many at once, four to a register.
constexpr std::size_t kLanes = 16;
using Lanes [[gnu::vector_size(16)]] = std::int32_t;  // all are below 2^31

[[gnu::always_inline]] inline std::uint32_t smallest(const std::uint32_t* candidates, std::size_t count) noexcept {
    const auto load = [&](std::size_t i) {
        Lanes lanes;
        std::memcpy(&lanes, candidates + i, sizeof lanes);
        return lanes;
    };
    const auto smaller = [](const Lanes& a, const Lanes& b) { return a < b ? a : b; };
    Lanes least = load(0);
    for (std::size_t i = 0; i < count; i += kLanes) {
        least = smaller(smaller(smaller(load(i), load(i + 4)), smaller(load(i + 8), load(i + 12))), least);
    }
    return static_cast<std::uint32_t>(std::min(std::min(least[0], least[1]), std::min(least[2], least[3])));
}

// Without a branch, which compilers make of a conditional expression as they like.
std::uint64_t choose(bool condition, std::uint64_t yes, std::uint64_t no) noexcept {
    return no ^ ((yes ^ no) & (std::uint64_t{0} - std::uint64_t{condition}));
}

constexpr std::size_t kAhead = 16;  // rules whose memory is asked for before they are looked at

// Throws for the first merge that names no token, or whose tokens are not the parts of its result.
void check_rules(const TokenTexts& tokens, std::span<const MergeRule> rules) {
    constexpr std::size_t kShare = 1 << 14;
    const auto is_inside = [&](const MergeRule& rule) {
        return std::max({rule.left, rule.right, rule.merged}) < tokens.size();
    };
    const auto check = [&](std::size_t share) {
        const std::size_t end = std::min(rules.size(), (share + 1) * kShare);
        for (std::size_t i = share * kShare; i < end; ++i) {
            if (i + kAhead < end && is_inside(rules[i + kAhead])) {
                __builtin_prefetch(tokens[rules[i + kAhead].left].data());
                __builtin_prefetch(tokens[rules[i + kAhead].right].data());
            }
            const auto name = [&] { return "merge " + std::to_string(rules[i].rank); };
            if (!is_inside(rules[i])) {
                throw std::invalid_argument(name() + " names an id that is not in the vocabulary");
            }
            const std::string_view left = tokens[rules[i].left];
            const std::string_view right = tokens[rules[i].right];
            const std::string_view merged = tokens[rules[i].merged];
            if (left.size() + right.size() != merged.size() || !merged.starts_with(left) ||
                !merged.ends_with(right)) {
                throw std::invalid_argument(name() + " does not concatenate to its result");
            }
        }
    };
    parallel_for((rules.size() + kShare - 1) / kShare, 0, check);
}

}  // namespace

std::size_t MergeTable::slots_for(std::size_t num_rules) noexcept {
    return std::bit_ceil(std::max<std::size_t>(2 * kBucket, num_rules * 2));
}

void MergeTable::set_sizes(std::size_t num_rules, std::size_t num_slots) noexcept {
    rank_bits_ = static_cast<unsigned>(std::bit_width(num_rules));
    shift_ = 64U - static_cast<unsigned>(std::countr_zero(num_slots));
}

MergeTable::MergeTable(const TokenTexts& tokens, std::span<const MergeRule> given) {
    if (tokens.size() > kLimit) throw std::invalid_argument("a vocabulary has at most 2097151 ids");
    if (given.size() > kLimit) throw std::invalid_argument("a vocabulary has at most 2097151 merges");
    check_rules(tokens, given);
    // The order of rules that share a rank makes no difference: of a token's parts only those can meet that
    // merging the token's own symbols ends with.
    std::vector<MergeRule> sorted;
    const auto by_rank = [](const MergeRule& a, const MergeRule& b) { return a.rank < b.rank; };
    if (!std::ranges::is_sorted(given, by_rank)) {
        sorted.assign(given.begin(), given.end());
        std::ranges::stable_sort(sorted, by_rank);
        given = sorted;
    }
    Rules rules;
    rules.reserve(given.size());
    for (std::size_t i = 0; i < given.size(); ++i) {
        if (i > 0 && given[i].rank == given[i - 1].rank && given[i].merged != given[i - 1].merged) {
            throw std::invalid_argument("merge " + std::to_string(given[i].rank) + " has two results");
        }
        rules.push_back({given[i].left, given[i].right, given[i].merged});
    }
    Slots slots(slots_for(rules.size()));
    set_sizes(rules.size(), slots.size());
    std::vector<HiddenPair> hidden;
    for (std::size_t i = 0; i < rules.size(); ++i) {
        if (i + kAhead < rules.size()) {
            const Rule& later = rules[i + kAhead];
            __builtin_prefetch(&slots[bucket_of(hash_of(pair_of(later.left, later.right)))], 1);
        }
        add(static_cast<Rank>(i), rules, slots, hidden);
    }
    std::ranges::sort(hidden);
    rules_ = SharedArray<Rule>(std::move(rules));
    slots_ = SharedArray<std::uint32_t>(std::move(slots));
    hidden_ = SharedArray<HiddenPair>(std::move(hidden));
    while (find_bound(no_pair_) != kNoRank) ++no_pair_;
}

// Ranks are added from the lowest on.
void MergeTable::add(Rank rank, Rules& rules, Slots& slots, std::vector<HiddenPair>& hidden) const {
    const Rule rule = rules[rank];
    const std::uint64_t pair = pair_of(rule.left, rule.right);
    const std::uint64_t hash = hash_of(pair);
    for (std::size_t slot = bucket_of(hash);; slot = (slot + 1) & (slots.size() - 1)) {
        if (slots[slot] == 0) {
            slots[slot] = (tag_of(hash) << rank_bits_) | (rank + 1);
            return;
        }
        if (slots[slot] >> rank_bits_ != tag_of(hash)) continue;
        const Rank other = (slots[slot] & ((1U << rank_bits_) - 1)) - 1;
        // Of equal pairs the last one counts, as in `tokenizers`.
        if (rules[other].left == rule.left && rules[other].right == rule.right) {
            rules[other].left = rules[other].right = kNone;
        }
        hidden.push_back({pair, rank});
        return;
    }
}

MergeTable::MergeTable(const SectionFile& file, std::size_t num_ids)
    : rules_(file.array<Rule>(Section::kRules)),
      slots_(file.array<std::uint32_t>(Section::kPairSlots)),
      hidden_(file.array<HiddenPair>(Section::kHiddenPairs)),
      byte_pairs_(file.array<Rank>(Section::kBytePairs)) {
    const auto fail = [] { throw std::invalid_argument("its table of merges is damaged"); };
    if (num_ids > kLimit || rules_.size() > kLimit || slots_.size() != slots_for(rules_.size())) fail();
    set_sizes(rules_.size(), slots_.size());
    const auto limit = static_cast<TokenId>(num_ids);
    std::uint32_t is_outside = 0;
    for (const Rule& rule : rules_) {
        const std::uint32_t is_free = (rule.left & rule.right) == kNone ? 1U : 0U;  // another of the same pair counts
        is_outside |= rule.merged >= limit ? 1U : 0U;
        is_outside |= (rule.left >= limit ? 1U : 0U) & ~is_free;
        is_outside |= (rule.right >= limit ? 1U : 0U) & ~is_free;
    }
    bool outside = is_outside != 0;
    check_slots();
    for (const HiddenPair& one : hidden_) {
        outside |= one.rank >= rules_.size() ||
                   pair_of(rules_[one.rank].left, rules_[one.rank].right) != one.pair;
    }
    outside |= !std::ranges::is_sorted(hidden_);
    if (!byte_pairs_.empty() && byte_pairs_.size() != 256 * 256) fail();
    for (const Rank rank : byte_pairs_) outside |= rank != kNoRank && rank >= rules_.size();
    if (outside) fail();
    while (find_bound(no_pair_) != kNoRank) ++no_pair_;
}

// A look-up must end, and give a rank that there is. It joins what it finds in a bucket, where no two may have the
// same tag.
void MergeTable::check_slots() const {
    const auto num_rules = static_cast<std::uint32_t>(rules_.size());
    const std::uint32_t rank_mask = (1U << rank_bits_) - 1;
    std::uint32_t is_outside = 0;
    for (const std::uint32_t slot : slots_) is_outside |= (slot & rank_mask) > num_rules ? 1U : 0U;
    bool is_damaged = is_outside != 0, ends = false;
    for (std::size_t bucket = 0; bucket < slots_.size(); bucket += kBucket) {
        const std::span<const std::uint32_t> slots = slots_.items().subspan(bucket, kBucket);
        std::uint64_t seen = 0, twice = 0;  // by the tags' lowest bits: most buckets need no closer look
        for (const std::uint32_t slot : slots) {
            const std::uint64_t bit = std::uint64_t{slot != 0 ? 1U : 0U} << ((slot >> rank_bits_) & 63);
            twice |= seen & bit;
            seen |= bit;
        }
        for (std::size_t i = 0; twice != 0 && i < kBucket; ++i) {
            for (std::size_t j = 0; j < i; ++j) {
                is_damaged |= slots[i] != 0 && slots[j] != 0 && slots[i] >> rank_bits_ == slots[j] >> rank_bits_;
            }
        }
        ends |= slots[kBucket - 1] == 0;
    }
    if (is_damaged || !ends) throw std::invalid_argument("its table of merges is damaged");
}

namespace {

enum RankOrder : std::uint32_t { kByPlace, kByResult };

}  // namespace

void MergeTable::write(SectionWriter& out, std::span<const MergeRule> given) const {
    const auto all = [&](auto&& holds) {
        for (std::size_t i = 0; i < given.size(); ++i) {
            if (!holds(i)) return false;
        }
        return true;
    };
    const bool is_same = given.size() == rules_.size() && all([&](std::size_t i) {
        return rules_[i].left == given[i].left && rules_[i].right == given[i].right &&
               rules_[i].merged == given[i].merged;
    });
    const bool by_place = is_same && all([&](std::size_t i) { return given[i].rank == i; });
    if (by_place || (is_same && all([&](std::size_t i) { return given[i].rank == given[i].merged; }))) {
        const std::uint32_t order = by_place ? kByPlace : kByResult;
        out.add(Section::kRanks, std::span(&order, 1));
    } else {
        out.add(Section::kMerges, given);
    }
    out.add(Section::kRules, rules_.items());
    out.add(Section::kPairSlots, slots_.items());
    out.add(Section::kHiddenPairs, hidden_.items());
    out.add(Section::kBytePairs, byte_pairs_.items());
}

std::vector<MergeRule> MergeTable::read_given(const SectionFile& file, std::size_t num_ids) {
    std::vector<MergeRule> given;
    if (const auto order = file.array<std::uint32_t>(Section::kRanks); !order.empty()) {
        const auto rules = file.array<Rule>(Section::kRules);
        given.reserve(rules.size());
        for (const Rule& rule : rules) {
            const auto rank = order[0] == kByPlace ? static_cast<std::uint32_t>(given.size()) : rule.merged;
            given.push_back({rule.left, rule.right, rule.merged, rank});
        }
    } else {
        const auto stored = file.array<MergeRule>(Section::kMerges);
        given.assign(stored.begin(), stored.end());
    }
    for (const MergeRule& rule : given) {
        if (std::max({rule.left, rule.right, rule.merged}) >= num_ids) {
            throw std::invalid_argument("its list of merges is damaged");
        }
    }
    return given;
}

// The pair's rank, or that of another pair, which is then the lower one. A bucket's places are looked at without a
// branch; only of a full one the next is asked for.
[[gnu::always_inline]] inline MergeTable::Rank MergeTable::find_bound(std::uint64_t pair) const noexcept {
    using Words [[gnu::vector_size(16)]] = std::uint32_t;
    const std::uint64_t hash = hash_of(pair);
    const std::uint32_t tag = tag_of(hash);
    const std::size_t mask = slots_.size() - 1;
    for (std::size_t bucket = bucket_of(hash);; bucket = (bucket + kBucket) & mask) {
        const std::uint32_t* const slots = &slots_[bucket];
        Words low, high;
        std::memcpy(&low, slots, sizeof low);
        std::memcpy(&high, slots + 4, sizeof high);
        // At most one has the tag.
        low &= reinterpret_cast<Words>(low >> rank_bits_ == tag);
        high &= reinterpret_cast<Words>(high >> rank_bits_ == tag);
        low |= high;
        std::uint64_t halves[2];
        std::memcpy(halves, &low, sizeof low);
        halves[0] |= halves[1];
        const auto found = static_cast<std::uint32_t>(halves[0] | halves[0] >> 32) & ((1U << rank_bits_) - 1);
        // One branch, that can be foreseen.
        if (((found == 0) & (slots[kBucket - 1] != 0)) == 0) [[likely]] return (found - 1) & kNoRank;
    }
}

MergeTable::Rank MergeTable::find_hidden(std::uint64_t pair) const noexcept {
    const auto behind = std::ranges::upper_bound(hidden_, HiddenPair{pair, kNoRank});
    return behind != hidden_.begin() && behind[-1].pair == pair ? static_cast<Rank>(behind[-1].rank) : kNoRank;
}

MergeTable::Rank MergeTable::find(TokenId left, TokenId right) const noexcept {
    const std::uint64_t pair = pair_of(left, right);
    const Rank rank = find_bound(pair);
    return rank == kNoRank || is_rule_of(rank, left, right) ? rank : find_hidden(pair);
}

void MergeTable::set_bytes(std::span<const TokenId, 256> byte_ids, MissingBytes missing) {
    if (missing.unknown != kNoToken && missing.unknown >= kLimit) {
        throw std::invalid_argument("the unknown token has the id " + std::to_string(missing.unknown) +
                                    "; ids must be below 2097151");
    }
    std::ranges::copy(byte_ids, byte_ids_.begin());
    has_missing_ = std::ranges::find(byte_ids, kNoToken) != byte_ids.end();
    missing_ = missing;
    if (!byte_pairs_.empty()) return;  // of a file
    std::vector<Rank> pairs(256 * 256, kNoRank);
    for (std::size_t i = 0; i < pairs.size(); ++i) {
        const TokenId left = byte_ids[i / 256], right = byte_ids[i % 256];
        if (left != kNoToken && right != kNoToken) pairs[i] = find(left, right);
    }
    byte_pairs_ = SharedArray<Rank>(std::move(pairs));
}

bool MergeTable::find_missing(std::string_view bytes) const noexcept {
    return std::ranges::any_of(bytes, [&](char c) { return byte_ids_[static_cast<std::uint8_t>(c)] == kNoToken; });
}

std::size_t MergeTable::apply_missing(std::string_view bytes, TokenId* out) const {
    std::size_t size = 0;
    bool after_missing = false;
    for (const char c : bytes) {
        const TokenId id = byte_ids_[static_cast<std::uint8_t>(c)];
        const bool is_missing = id == kNoToken;
        if (!is_missing) {
            out[size++] = id;
        } else if (missing_.unknown != kNoToken && !(after_missing && missing_.fuse)) {
            out[size++] = missing_.unknown;
        }
        after_missing = is_missing;
    }
    return apply({out, size});
}

std::size_t MergeTable::apply(std::span<TokenId> symbols) const {
    if (symbols.size() > Row::kMaxSize) return apply_long(symbols);
    Row row{nullptr, symbols.size(), symbols.data()};
    apply(std::span(&row, 1));
    return row.size;
}

std::size_t MergeTable::apply_bytes(std::string_view bytes, TokenId* out) const {
    if (lacks_byte(bytes)) return apply_missing(bytes, out);
    if (bytes.size() <= Row::kMaxSize) {
        Row row{bytes.data(), bytes.size(), out};
        apply(std::span(&row, 1));
        return row.size;
    }
    for (std::size_t i = 0; i < bytes.size(); ++i) out[i] = byte_ids_[static_cast<std::uint8_t>(bytes[i])];
    return apply_long({out, bytes.size()});
}

// A row between two of its merges. Symbols stay where they are; a word of bits says which are left. What a
// step needs from memory is asked for a step before. How a row goes on is hard to predict: a step has no
// branches but for rare cases, and for the end.
struct MergeTable::RowState {
    Row* row;
    std::uint64_t alive;
    std::uint32_t num_lanes;              // candidates in use, rounded up to what is looked at together
    std::uint32_t place, previous;        // where the pairs below begin
    std::uint32_t best;                   // candidate
    std::uint64_t right_pair, left_pair;  // not looked up yet; no_pair_ where there is none
    alignas(64) std::array<std::uint32_t, Row::kMaxSize> candidates;
};

void MergeTable::start(RowState& state, Row& row) const noexcept {
    state.row = &row;
    state.alive = ~std::uint64_t{0} >> (64 - row.size);
    state.num_lanes = static_cast<std::uint32_t>((row.size + kLanes - 1) / kLanes * kLanes);
    state.place = state.previous = static_cast<std::uint32_t>(row.size - 1);  // which begins no pair
    state.right_pair = state.left_pair = no_pair_;
    std::memcpy(state.candidates.data(), kNoCandidates.data(), state.num_lanes * sizeof(std::uint32_t));
    if (row.bytes == nullptr) {
        for (std::size_t i = 0; i + 1 < row.size; ++i)
            state.candidates[i] = candidate(find(row.ids[i], row.ids[i + 1]), i);
        return;
    }
    const auto byte = [&](std::size_t i) -> std::size_t { return static_cast<std::uint8_t>(row.bytes[i]); };
    std::size_t before = byte(0);
    row.ids[0] = byte_ids_[before];
    for (std::size_t i = 1; i < row.size; ++i) {
        const std::size_t after = byte(i);
        row.ids[i] = byte_ids_[after];
        state.candidates[i - 1] = candidate(byte_pairs_[before * 256 + after], i - 1);
        before = after;
    }
}

[[gnu::always_inline]] inline void MergeTable::look_up(RowState& state) const noexcept {
    // A place without a pair has no_pair_, and so `place` comes last: both may be the same.
    state.candidates[state.previous] = candidate(find_bound(state.left_pair), state.previous);
    state.candidates[state.place] = candidate(find_bound(state.right_pair), state.place);
}

// Which pair is the next to be merged; false where none is left.
[[gnu::always_inline]] inline bool MergeTable::find_best(RowState& state) const noexcept {
    state.best = smallest(state.candidates.data(), state.num_lanes);
    // As a number: where no pair is left, this is no rule's address.
    const auto rule = reinterpret_cast<std::uintptr_t>(rules_.data()) + (state.best >> kPlaceBits) * sizeof(Rule);
    __builtin_prefetch(reinterpret_cast<const void*>(rule));
    return state.best >> kPlaceBits != kNoRank;
}

[[gnu::always_inline]] inline void MergeTable::merge_best(RowState& state) const noexcept {
    Row& row = *state.row;
    const std::uint32_t place = state.best & ((1U << kPlaceBits) - 1);
    const std::uint64_t behind = ~std::uint64_t{1} << place;
    const std::uint64_t removed = state.alive & behind;  // its lowest bit
    const auto removed_place = static_cast<std::uint32_t>(std::countr_zero(removed));
    const Rule& rule = rules_[state.best >> kPlaceBits];
    if (rule.left != row.ids[place] || rule.right != row.ids[removed_place]) [[unlikely]] {
        // Another pair's rank: put the right one there, and look again.
        const std::uint64_t pair = pair_of(row.ids[place], row.ids[removed_place]);
        state.candidates[place] = candidate(find_hidden(pair), place);
        state.right_pair = state.left_pair = no_pair_;
        state.place = state.previous = static_cast<std::uint32_t>(row.size - 1);
        return;
    }
    const std::uint64_t after = removed & (removed - 1);
    state.alive ^= removed ^ after;
    state.candidates[removed_place] = candidate(kNoRank, removed_place);
    row.ids[place] = rule.merged;
    const std::uint64_t before = state.alive & ~(~std::uint64_t{0} << place);
    const auto next = static_cast<std::size_t>(std::countr_zero(after | std::uint64_t{1} << 63));
    const auto previous = static_cast<std::uint32_t>(63 - std::countl_zero(before | 1));
    const std::uint64_t right = pair_of(rule.merged, row.ids[next < row.size ? next : 0]);
    const std::uint64_t left = pair_of(row.ids[previous], rule.merged);
    state.right_pair = choose(after != 0, right, no_pair_);
    state.left_pair = choose(before != 0, left, no_pair_);
    state.place = place;
    state.previous = static_cast<std::uint32_t>(choose(before != 0, previous, place));
    __builtin_prefetch(&slots_[bucket_of(hash_of(state.right_pair))]);
    __builtin_prefetch(&slots_[bucket_of(hash_of(state.left_pair))]);
}

// Turn by turn, each for all rows: what one part of a step has written must have come to memory before the next
// part reads it in wider words, or the processor waits.
void MergeTable::apply_few(std::span<Row> rows) const noexcept {
    constexpr std::size_t kAtOnce = 16;
    RowState states[kAtOnce];
    RowState* open[kAtOnce];
    RowState* finished[kAtOnce];
    for (std::size_t i = 0; i < kAtOnce; ++i) open[i] = &states[i];
    for (std::size_t next = 0, num_open = 0;;) {
        for (; num_open < kAtOnce && next < rows.size(); ++next) {
            if (rows[next].size > 1) {
                start(*open[num_open++], rows[next]);
            } else if (rows[next].size == 1 && rows[next].bytes != nullptr) {
                rows[next].ids[0] = byte_ids_[static_cast<std::uint8_t>(rows[next].bytes[0])];
            }
        }
        if (num_open == 0) return;
        for (std::size_t i = 0; i < num_open; ++i) look_up(*open[i]);
        std::size_t num_left = 0, num_finished = 0;
        for (std::size_t i = 0; i < num_open; ++i) {
            RowState* const state = open[i];
            const bool is_left = find_best(*state);
            open[num_left] = finished[num_finished] = state;
            num_left += is_left;
            num_finished += !is_left;
        }
        for (std::size_t i = 0; i < num_finished; ++i) {
            Row& row = *finished[i]->row;
            row.size = 0;
            for (std::uint64_t alive = finished[i]->alive; alive != 0; alive &= alive - 1)
                row.ids[row.size++] = row.ids[static_cast<std::size_t>(std::countr_zero(alive))];
            open[num_left + i] = finished[i];
        }
        num_open = num_left;
        for (std::size_t i = 0; i < num_open; ++i) merge_best(*open[i]);
    }
}

// Rows of the same size go side by side.
void MergeTable::apply(std::span<Row> rows, SimdLevel level) const noexcept {
    constexpr std::size_t kFew = 12;  // that take as long either way
    if (level != SimdLevel::kAvx512 || rows.size() < kFew) return apply_few(rows);
    constexpr std::size_t kMost = 256;
    for (; rows.size() > kMost; rows = rows.subspan(kMost)) apply(rows.first(kMost), level);
    // Sorted by size, those for `apply_few` last.
    constexpr std::size_t kOthers = Row::kMaxWide + 1;
    const auto kind_of = [](const Row& row) {
        return row.bytes != nullptr && row.size > 0 && row.size <= Row::kMaxWide ? row.size : kOthers;
    };
    std::array<std::size_t, kOthers + 2> places{};
    for (const Row& row : rows) ++places[kind_of(row) + 1];
    for (std::size_t i = 1; i < places.size(); ++i) places[i] += places[i - 1];
    const std::size_t num_wide = places[kOthers];
    std::array<Row*, kMost> sorted;
    for (Row& row : rows) sorted[places[kind_of(row)]++] = &row;
    apply_wide(std::span(sorted).first(num_wide));
    const std::span<Row* const> others = std::span(sorted).subspan(num_wide, rows.size() - num_wide);
    std::array<Row, kMost> copies;
    for (std::size_t i = 0; i < others.size(); ++i) copies[i] = *others[i];
    apply_few(std::span(copies).first(others.size()));
    for (std::size_t i = 0; i < others.size(); ++i) others[i]->size = copies[i].size;
}

// A heap of candidate merges over a linked list: O(n log n) however long the row. A candidate is its rank and
// its place in one number; it is outdated where the pair that starts there has another rank by now.
std::size_t MergeTable::apply_long(std::span<TokenId> symbols) const {
    constexpr unsigned kLowBits = 64 - kIdBits;
    constexpr std::size_t kEnd = ~std::size_t{0};
    struct Node {
        std::size_t previous, next;
        Rank rank;  // of the pair that starts here
    };
    std::vector<Node> nodes(symbols.size());
    std::vector<std::uint64_t> heap;
    heap.reserve(symbols.size());
    const auto propose = [&](std::size_t place) {
        Node& node = nodes[place];
        node.rank = node.next == kEnd ? kNoRank : find(symbols[place], symbols[node.next]);
        if (node.rank == kNoRank) return false;
        heap.push_back((static_cast<std::uint64_t>(node.rank) << kLowBits) | place);
        return true;
    };
    for (std::size_t i = 0; i < nodes.size(); ++i) {
        nodes[i].previous = i == 0 ? kEnd : i - 1;
        nodes[i].next = i + 1 < nodes.size() ? i + 1 : kEnd;
        propose(i);
    }
    std::make_heap(heap.begin(), heap.end(), std::greater<>{});
    const auto push = [&](std::size_t place) {
        if (propose(place)) std::push_heap(heap.begin(), heap.end(), std::greater<>{});
    };
    while (!heap.empty()) {
        const std::uint64_t top = heap.front();
        std::pop_heap(heap.begin(), heap.end(), std::greater<>{});
        heap.pop_back();
        const std::size_t place = top & ((std::uint64_t{1} << kLowBits) - 1);
        Node& node = nodes[place];
        if (node.rank != top >> kLowBits) continue;
        const std::size_t removed = node.next;
        symbols[place] = rules_[node.rank].merged;
        node.next = nodes[removed].next;
        if (node.next != kEnd) nodes[node.next].previous = place;
        nodes[removed].rank = kNoRank;
        if (node.previous != kEnd) push(node.previous);
        push(place);
    }
    std::size_t count = 0;
    for (std::size_t i = 0; i != kEnd; i = nodes[i].next) symbols[count++] = symbols[i];
    return count;
}

}  // namespace pylm
