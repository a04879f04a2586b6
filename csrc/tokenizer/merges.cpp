#include "tokenizer/merges.hpp"

#include <algorithm>
#include <bit>
#include <functional>
#include <queue>
#include <stdexcept>
#include <utility>

namespace pylm {

namespace {

constexpr TokenId kNone = std::numeric_limits<TokenId>::max();
constexpr std::size_t kShort = 64;  // longer rows take the heap; a row's places fit into a word

std::uint64_t pair_of(TokenId left, TokenId right) noexcept {
    return (static_cast<std::uint64_t>(left) << 21) | right;
}

// Rank and place of a pair in one number, so that the smallest has the lowest rank, then the leftmost place.
std::uint64_t candidate(std::uint32_t rank, std::size_t place) noexcept {
    return (static_cast<std::uint64_t>(rank) << 8) | place;
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
            __builtin_prefetch(&slots_[slot_of(pair_of(later.left, later.right))], 1);
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
        std::size_t slot = slot_of(pair);
        while (slots_[slot] != kEmpty && slots_[slot] >> kBits != pair) slot = (slot + 1) & mask;
        if (slots_[slot] == kEmpty) slots_[slot] = (pair << kBits) | rule.rank;  // else the first one counts
    }
}

MergeTable::Rank MergeTable::find(TokenId left, TokenId right) const noexcept {
    return find(pair_of(left, right));
}

MergeTable::Rank MergeTable::find(std::uint64_t pair) const noexcept {
    const std::size_t mask = slots_.size() - 1;
    for (std::size_t slot = slot_of(pair);; slot = (slot + 1) & mask) {
        const std::uint64_t found = slots_[slot];
        if (found >> kBits == pair) return static_cast<Rank>(found & kLimit);
        if (found == kEmpty) return kNoRank;
    }
}

void MergeTable::set_bytes(std::span<const TokenId, 256> byte_ids) {
    std::ranges::copy(byte_ids, byte_ids_.begin());
    byte_pairs_.resize(256 * 256);
    for (std::size_t i = 0; i < byte_pairs_.size(); ++i) byte_pairs_[i] = find(byte_ids[i / 256], byte_ids[i % 256]);
}

std::size_t MergeTable::apply(std::span<TokenId> symbols) const {
    const std::size_t size = symbols.size();
    if (size > kShort) return apply_long(symbols);
    std::uint64_t candidates[kShort];
    for (std::size_t i = 0; i + 1 < size; ++i) candidates[i] = candidate(find(symbols[i], symbols[i + 1]), i);
    return apply_short(symbols.data(), candidates, size);
}

std::size_t MergeTable::apply_bytes(std::string_view bytes, TokenId* out) const {
    const auto byte = [&](std::size_t i) -> std::size_t { return static_cast<std::uint8_t>(bytes[i]); };
    const std::size_t size = bytes.size();
    for (std::size_t i = 0; i < size; ++i) out[i] = byte_ids_[byte(i)];
    if (size > kShort) return apply_long({out, size});
    std::uint64_t candidates[kShort];
    for (std::size_t i = 0; i + 1 < size; ++i) candidates[i] = candidate(byte_pairs_[byte(i) * 256 + byte(i + 1)], i);
    return apply_short(out, candidates, size);
}

// Repeated minimum over a small array. Symbols stay where they are; a word of bits says which are left.
std::size_t MergeTable::apply_short(TokenId* ids, std::uint64_t* candidates, std::size_t size) const noexcept {
    if (size < 2) return size;
    const std::size_t num_pairs = size - 1;
    std::uint64_t alive = ~std::uint64_t{0} >> (64 - size);
    for (;;) {
        std::uint64_t best = candidates[0];
        for (std::size_t i = 1; i < num_pairs; ++i) best = std::min(best, candidates[i]);
        const auto rank = static_cast<Rank>(best >> 8);
        if (rank == kNoRank) break;
        const std::size_t place = best & 0xFF;
        const auto after = [&](std::size_t i) {  // the next place that is alive, or 64
            return static_cast<std::size_t>(std::countr_zero(i >= 63 ? 0 : alive & (~std::uint64_t{0} << (i + 1))));
        };
        const std::size_t removed = after(place);
        ids[place] = merged_[rank];
        alive &= ~(std::uint64_t{1} << removed);
        if (removed < num_pairs) candidates[removed] = candidate(kNoRank, removed);
        const std::size_t next = after(place);
        candidates[place] = candidate(next < 64 ? find(ids[place], ids[next]) : kNoRank, place);
        if (const std::uint64_t before = alive & ~(~std::uint64_t{0} << place); before != 0) {
            const auto previous = static_cast<std::size_t>(63 - std::countl_zero(before));
            candidates[previous] = candidate(find(ids[previous], ids[place]), previous);
        }
    }
    std::size_t count = 0;
    for (; alive != 0; alive &= alive - 1) ids[count++] = ids[std::countr_zero(alive)];
    return count;
}

// A row between two of its merges. The pairs that a merge has made are looked up a turn later, when the cache
// lines of their slots have come.
struct MergeTable::RowState {
    static constexpr std::uint64_t kNone = ~std::uint64_t{0};
    Row* row;
    std::uint32_t alive;       // a bit a symbol that is left
    std::uint32_t num_pairs;   // candidates in use
    std::uint32_t place, previous;
    std::uint64_t right_pair = kNone, left_pair = kNone;  // of `place` and of `previous`, not looked up yet
    std::array<std::uint64_t, Row::kMaxBytes> candidates;
};

void MergeTable::apply_bytes(std::span<Row* const> rows) const noexcept {
    constexpr std::size_t kAtOnce = 16;
    RowState states[kAtOnce];
    const auto start = [&](RowState& state, Row& row) {
        const auto byte = [&](std::size_t i) -> std::size_t { return static_cast<std::uint8_t>(row.bytes[i]); };
        state.row = &row;
        state.alive = (std::uint32_t{1} << row.size) - 1;
        state.num_pairs = static_cast<std::uint32_t>(row.size - 1);
        state.right_pair = state.left_pair = RowState::kNone;
        for (std::size_t i = 0; i < row.size; ++i) row.ids[i] = byte_ids_[byte(i)];
        for (std::size_t i = 0; i + 1 < row.size; ++i)
            state.candidates[i] = candidate(byte_pairs_[byte(i) * 256 + byte(i + 1)], i);
    };
    // One merge; false where none is left.
    const auto step = [&](RowState& state) {
        Row& row = *state.row;
        if (state.right_pair != RowState::kNone)
            state.candidates[state.place] = candidate(find(state.right_pair), state.place);
        if (state.left_pair != RowState::kNone)
            state.candidates[state.previous] = candidate(find(state.left_pair), state.previous);
        std::uint64_t best = candidate(kNoRank, 0);
        for (std::size_t i = 0; i < state.num_pairs; ++i) best = std::min(best, state.candidates[i]);
        const auto rank = static_cast<Rank>(best >> 8);
        if (rank == kNoRank) return false;
        state.place = static_cast<std::uint32_t>(best & 0xFF);
        const std::uint32_t behind = ~std::uint32_t{0} << state.place << 1;
        const auto removed = static_cast<std::uint32_t>(std::countr_zero(state.alive & behind));
        state.alive &= ~(std::uint32_t{1} << removed);
        row.ids[state.place] = merged_[rank];
        state.candidates[state.place] = state.candidates[removed < state.num_pairs ? removed : state.place] =
            candidate(kNoRank, 0);
        const auto expect = [&](TokenId left, TokenId right) {
            const std::uint64_t pair = pair_of(left, right);
            __builtin_prefetch(&slots_[slot_of(pair)]);
            return pair;
        };
        const std::uint32_t after = state.alive & behind;
        state.right_pair =
            after != 0 ? expect(row.ids[state.place], row.ids[std::countr_zero(after)]) : RowState::kNone;
        const std::uint32_t before = state.alive & ((std::uint32_t{1} << state.place) - 1);
        state.previous = 31U - static_cast<std::uint32_t>(std::countl_zero(before | 1));
        state.left_pair = before != 0 ? expect(row.ids[state.previous], row.ids[state.place]) : RowState::kNone;
        return true;
    };
    for (std::size_t next = 0, active = 0; next < rows.size() || active > 0;) {
        while (active < kAtOnce && next < rows.size()) start(states[active++], *rows[next++]);
        for (std::size_t i = 0; i < active;) {
            if (step(states[i])) {
                ++i;
                continue;
            }
            Row& row = *states[i].row;
            row.size = 0;
            for (std::uint32_t alive = states[i].alive; alive != 0; alive &= alive - 1)
                row.ids[row.size++] = row.ids[static_cast<std::size_t>(std::countr_zero(alive))];
            states[i] = states[--active];
        }
    }
}

// A heap of candidate merges over a linked list: O(n log n) however long the row. A candidate is its rank and
// its place in one number; it is outdated where the pair that starts there has another rank by now.
std::size_t MergeTable::apply_long(std::span<TokenId> symbols) const {
    constexpr unsigned kPlaceBits = 64 - kBits;
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
        heap.push_back((static_cast<std::uint64_t>(node.rank) << kPlaceBits) | place);
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
        const std::size_t place = top & ((std::uint64_t{1} << kPlaceBits) - 1);
        Node& node = nodes[place];
        if (node.rank != top >> kPlaceBits) continue;
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
