#include "tokenizer/merges.hpp"

#include <algorithm>
#include <bit>
#include <cstring>
#include <functional>
#include <queue>
#include <stdexcept>
#include <utility>

namespace pylm {

namespace {

constexpr TokenId kNone = std::numeric_limits<TokenId>::max();

std::uint64_t pair_of(TokenId left, TokenId right) noexcept {
    return (static_cast<std::uint64_t>(left) << 21) | right;
}

// Rank and place of a pair in one number, so that the smallest has the lowest rank, then the leftmost place.
constexpr unsigned kPlaceBits = 6;
constexpr std::uint32_t candidate(std::uint32_t rank, std::size_t place) noexcept {
    return (rank << kPlaceBits) | static_cast<std::uint32_t>(place);
}

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

}  // namespace

MergeTable::MergeTable(std::span<const std::string> tokens, std::span<const MergeRule> rules) {
    const std::size_t num_slots = std::bit_ceil(std::max<std::size_t>(16, rules.size() * 2));
    shift_ = 64U - static_cast<unsigned>(std::countr_zero(num_slots));
    slots_.assign(num_slots, kEmpty);
    if (tokens.size() > kLimit) throw std::invalid_argument("a vocabulary has at most 2097151 ids");
    const std::size_t mask = num_slots - 1;
    constexpr std::size_t kAhead = 16;  // rules whose memory is asked for before they are looked at
    for (std::size_t i = 0; i < rules.size(); ++i) {
        if (i + kAhead < rules.size()) {
            const MergeRule& later = rules[i + kAhead];
            __builtin_prefetch(&slots_[bucket_of(pair_of(later.left, later.right))], 1);
            if (std::max(later.left, later.right) < tokens.size()) {
                __builtin_prefetch(&tokens[later.left]);
                __builtin_prefetch(&tokens[later.right]);
            }
        }
        const MergeRule& rule = rules[i];
        const auto name = [&] { return "merge " + std::to_string(rule.rank); };
        if (std::max({rule.left, rule.right, rule.merged}) >= tokens.size()) {
            throw std::invalid_argument(name() + " names an id that is not in the vocabulary");
        }
        const std::string& left = tokens[rule.left];
        const std::string& merged = tokens[rule.merged];
        if (left.size() + tokens[rule.right].size() != merged.size() || !merged.starts_with(left) ||
            !merged.ends_with(tokens[rule.right])) {
            throw std::invalid_argument(name() + " does not concatenate to its result");
        }
        if (rule.rank >= kLimit) throw std::invalid_argument(name() + ": ranks must be below 2097151");
        if (rule.rank >= merged_.size()) merged_.resize(rule.rank + std::size_t{1}, kNone);
        if (merged_[rule.rank] != kNone && merged_[rule.rank] != rule.merged) {
            throw std::invalid_argument(name() + " has two results");
        }
        merged_[rule.rank] = rule.merged;
        const std::uint64_t pair = pair_of(rule.left, rule.right);
        std::size_t slot = bucket_of(pair);
        while (slots_[slot] != kEmpty && slots_[slot] >> kBits != pair) slot = (slot + 1) & mask;
        if (slots_[slot] == kEmpty) slots_[slot] = (pair << kBits) | rule.rank;  // else the first one counts
    }
}

MergeTable::Rank MergeTable::find(TokenId left, TokenId right) const noexcept {
    return find(pair_of(left, right));
}

// A bucket's four places are looked at without a branch; only of a full one the next is asked for.
MergeTable::Rank MergeTable::find(std::uint64_t pair) const noexcept {
    const std::size_t mask = slots_.size() - 1;
    for (std::size_t bucket = bucket_of(pair);; bucket = (bucket + kBucket) & mask) {
        const std::uint64_t* const slots = &slots_[bucket];
        Rank rank = kNoRank;
        for (std::size_t i = 0; i < kBucket; ++i)
            rank = slots[i] >> kBits == pair ? static_cast<Rank>(slots[i] & kLimit) : rank;
        if (rank != kNoRank || slots[kBucket - 1] == kEmpty) [[likely]] return rank;
    }
}

void MergeTable::set_bytes(std::span<const TokenId, 256> byte_ids) {
    std::ranges::copy(byte_ids, byte_ids_.begin());
    byte_pairs_.resize(256 * 256);
    for (std::size_t i = 0; i < byte_pairs_.size(); ++i) byte_pairs_[i] = find(byte_ids[i / 256], byte_ids[i % 256]);
}

std::size_t MergeTable::apply(std::span<TokenId> symbols) const {
    if (symbols.size() > Row::kMaxSize) return apply_long(symbols);
    Row row{nullptr, symbols.size(), symbols.data()};
    Row* const rows[] = {&row};
    apply(std::span(rows));
    return row.size;
}

std::size_t MergeTable::apply_bytes(std::string_view bytes, TokenId* out) const {
    if (bytes.size() <= Row::kMaxSize) {
        Row row{bytes.data(), bytes.size(), out};
        Row* const rows[] = {&row};
        apply(std::span(rows));
        return row.size;
    }
    for (std::size_t i = 0; i < bytes.size(); ++i) out[i] = byte_ids_[static_cast<std::uint8_t>(bytes[i])];
    return apply_long({out, bytes.size()});
}

// A row between two of its merges. Symbols stay where they are; a word of bits says which are left. The pairs
// that a merge has made are looked up a turn later, when the cache lines of their slots have come. How a row
// goes on is hard to predict: a step has no branches but for the rare case, and for the end.
struct MergeTable::RowState {
    Row* row;
    std::uint64_t alive;
    std::uint32_t num_lanes;             // candidates in use, rounded up to what is looked at together
    std::uint32_t place, previous;       // where the pairs below begin
    std::uint64_t right_pair, left_pair;  // not looked up yet; kNoPair where there is none
    alignas(64) std::array<std::uint32_t, Row::kMaxSize> candidates;
};

void MergeTable::start(RowState& state, Row& row) const noexcept {
    state.row = &row;
    state.alive = ~std::uint64_t{0} >> (64 - row.size);
    state.num_lanes = static_cast<std::uint32_t>((row.size + kLanes - 1) / kLanes * kLanes);
    state.place = state.previous = static_cast<std::uint32_t>(row.size - 1);  // which begins no pair
    state.right_pair = state.left_pair = kNoPair;
    const std::size_t num_pairs = row.size - 1;
    if (row.bytes != nullptr) {
        const auto byte = [&](std::size_t i) -> std::size_t { return static_cast<std::uint8_t>(row.bytes[i]); };
        for (std::size_t i = 0; i < row.size; ++i) row.ids[i] = byte_ids_[byte(i)];
        for (std::size_t i = 0; i < num_pairs; ++i)
            state.candidates[i] = candidate(byte_pairs_[byte(i) * 256 + byte(i + 1)], i);
    } else {
        for (std::size_t i = 0; i < num_pairs; ++i)
            state.candidates[i] = candidate(find(pair_of(row.ids[i], row.ids[i + 1])), i);
    }
    for (std::size_t i = num_pairs; i < state.num_lanes; ++i) state.candidates[i] = candidate(kNoRank, i);
}

// One merge; false where none is left.
[[gnu::always_inline]] inline bool MergeTable::step(RowState& state) const noexcept {
    Row& row = *state.row;
    // A place without a pair has looked up kNoPair, and so `place` last: both may be the same.
    state.candidates[state.previous] = candidate(find(state.left_pair), state.previous);
    state.candidates[state.place] = candidate(find(state.right_pair), state.place);
    const std::uint32_t best = smallest(state.candidates.data(), state.num_lanes);
    const Rank rank = best >> kPlaceBits;
    if (rank == kNoRank) return false;
    const std::uint32_t place = best & ((1U << kPlaceBits) - 1);
    const std::uint64_t behind = ~std::uint64_t{1} << place;
    const std::uint64_t removed = state.alive & behind;  // its lowest bit
    const auto removed_place = static_cast<std::uint32_t>(std::countr_zero(removed));
    const std::uint64_t after = removed & (removed - 1);
    state.alive ^= removed ^ after;
    state.candidates[removed_place] = candidate(kNoRank, removed_place);
    const TokenId merged = merged_[rank];
    row.ids[place] = merged;
    const std::uint64_t before = state.alive & ~(~std::uint64_t{0} << place);
    const auto next = static_cast<std::size_t>(std::countr_zero(after | std::uint64_t{1} << 63));
    const auto previous = static_cast<std::uint32_t>(63 - std::countl_zero(before | 1));
    const std::uint64_t right = pair_of(merged, row.ids[next < row.size ? next : 0]);
    const std::uint64_t left = pair_of(row.ids[previous], merged);
    state.right_pair = after != 0 ? right : kNoPair;
    state.left_pair = before != 0 ? left : kNoPair;
    state.place = place;
    state.previous = before != 0 ? previous : place;
    __builtin_prefetch(&slots_[bucket_of(state.right_pair)]);
    __builtin_prefetch(&slots_[bucket_of(state.left_pair)]);
    return true;
}

void MergeTable::apply(std::span<Row* const> rows) const noexcept {
    constexpr std::size_t kAtOnce = 16;
    RowState states[kAtOnce];
    for (std::size_t next = 0, active = 0; next < rows.size() || active > 0;) {
        for (; active < kAtOnce && next < rows.size(); ++next) {
            if (rows[next]->size > 1) {
                start(states[active++], *rows[next]);
            } else if (rows[next]->size == 1 && rows[next]->bytes != nullptr) {
                rows[next]->ids[0] = byte_ids_[static_cast<std::uint8_t>(rows[next]->bytes[0])];
            }
        }
        for (std::size_t i = 0; i < active;) {
            if (step(states[i])) {
                ++i;
                continue;
            }
            Row& row = *states[i].row;
            row.size = 0;
            for (std::uint64_t alive = states[i].alive; alive != 0; alive &= alive - 1)
                row.ids[row.size++] = row.ids[static_cast<std::size_t>(std::countr_zero(alive))];
            if (i != --active) states[i] = states[active];
        }
    }
}

// A heap of candidate merges over a linked list: O(n log n) however long the row. A candidate is its rank and
// its place in one number; it is outdated where the pair that starts there has another rank by now.
std::size_t MergeTable::apply_long(std::span<TokenId> symbols) const {
    constexpr unsigned kLowBits = 64 - kBits;
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
        symbols[place] = merged_[node.rank];
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
