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
    for (const MergeRule& rule : rules) {
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
    const std::uint64_t pair = pair_of(left, right);
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

// A heap of candidate merges over a linked list: O(n log n) however long the row.
std::size_t MergeTable::apply_long(std::span<TokenId> symbols) const {
    struct Node {
        TokenId id;
        std::int64_t previous, next;
    };
    struct Candidate {
        Rank rank;
        TokenId left, right;
        std::int64_t place;
        bool operator>(const Candidate& other) const noexcept {
            return rank != other.rank ? rank > other.rank : place > other.place;
        }
    };
    const auto size = static_cast<std::int64_t>(symbols.size());
    std::vector<Node> nodes(symbols.size());
    const auto node = [&](std::int64_t place) -> Node& { return nodes[static_cast<std::size_t>(place)]; };
    for (std::int64_t i = 0; i < size; ++i) {
        node(i) = {symbols[static_cast<std::size_t>(i)], i - 1, i + 1 < size ? i + 1 : -1};
    }
    std::vector<Candidate> heap;
    const auto propose = [&](std::int64_t place) -> bool {
        if (place < 0 || node(place).next < 0) return false;
        const TokenId left = node(place).id;
        const TokenId right = node(node(place).next).id;
        const Rank rank = find(left, right);
        if (rank == kNoRank) return false;
        heap.push_back({rank, left, right, place});
        return true;
    };
    for (std::int64_t i = 0; i + 1 < size; ++i) propose(i);
    std::make_heap(heap.begin(), heap.end(), std::greater<>{});
    const auto push = [&](std::int64_t place) {
        if (propose(place)) std::push_heap(heap.begin(), heap.end(), std::greater<>{});
    };
    while (!heap.empty()) {
        std::pop_heap(heap.begin(), heap.end(), std::greater<>{});
        const Candidate top = heap.back();
        heap.pop_back();
        Node& left = node(top.place);
        if (left.id != top.left || left.next < 0 || node(left.next).id != top.right) continue;  // outdated
        const std::int64_t removed = left.next;
        left.id = merged_[top.rank];
        left.next = node(removed).next;
        if (left.next >= 0) node(left.next).previous = top.place;
        node(removed).id = kNone;
        push(left.previous);
        push(top.place);
    }
    std::size_t count = 0;
    for (std::int64_t i = 0; i >= 0; i = node(i).next) symbols[count++] = node(i).id;
    return count;
}

}  // namespace pylm
