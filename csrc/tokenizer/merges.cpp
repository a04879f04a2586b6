#include "tokenizer/merges.hpp"

#include <algorithm>
#include <bit>
#include <functional>
#include <queue>
#include <stdexcept>
#include <tuple>

#include "text/hash.hpp"

namespace pylm {

namespace {

constexpr TokenId kNone = std::numeric_limits<TokenId>::max();
constexpr std::size_t kShort = 48;  // longer rows take the heap

std::uint64_t pair_key(TokenId left, TokenId right) noexcept {
    return (static_cast<std::uint64_t>(left) << 32) | right;
}

}  // namespace

MergeTable::MergeTable(std::span<const std::string> tokens, std::span<const MergeRule> rules)
    : slots_(std::bit_ceil(std::max<std::size_t>(16, rules.size() * 2))) {
    const std::size_t mask = slots_.size() - 1;
    for (const MergeRule& rule : rules) {
        if (std::max({rule.left, rule.right, rule.merged}) >= tokens.size()) {
            throw std::invalid_argument("merge " + std::to_string(rule.rank) +
                                        " names an id that is not in the vocabulary");
        }
        if (tokens[rule.left] + tokens[rule.right] != tokens[rule.merged]) {
            throw std::invalid_argument("merge " + std::to_string(rule.rank) +
                                        " does not concatenate to its result");
        }
        const std::uint64_t key = pair_key(rule.left, rule.right);
        std::size_t slot = mix64(key) & mask;
        while (slots_[slot].key != kNoPair && slots_[slot].key != key) slot = (slot + 1) & mask;
        if (slots_[slot].key == kNoPair) slots_[slot] = {key, pair_key(rule.rank, rule.merged)};
    }
}

std::uint64_t MergeTable::find(TokenId left, TokenId right) const noexcept {
    const std::uint64_t key = pair_key(left, right);
    const std::size_t mask = slots_.size() - 1;
    for (std::size_t slot = mix64(key) & mask;; slot = (slot + 1) & mask) {
        if (slots_[slot].key == key) return slots_[slot].value;
        if (slots_[slot].key == kNoPair) return kNoPair;
    }
}

std::size_t MergeTable::apply(std::span<TokenId> symbols) const {
    return symbols.size() <= kShort ? apply_short(symbols) : apply_long(symbols);
}

// Repeated minimum over a small array: fastest while the row fits into a few cache lines.
std::size_t MergeTable::apply_short(std::span<TokenId> symbols) const noexcept {
    std::uint64_t values[kShort];  // rank and result of merging symbols[i] with symbols[i + 1]
    TokenId* const ids = symbols.data();
    std::size_t size = symbols.size();
    for (std::size_t i = 0; i + 1 < size; ++i) values[i] = find(ids[i], ids[i + 1]);
    while (size > 1) {
        const auto best = static_cast<std::size_t>(std::min_element(values, values + size - 1) - values);
        if (values[best] == kNoPair) break;
        ids[best] = static_cast<TokenId>(values[best]);
        std::move(ids + best + 2, ids + size, ids + best + 1);
        if (best + 2 < size) std::move(values + best + 2, values + size - 1, values + best + 1);
        --size;
        if (best > 0) values[best - 1] = find(ids[best - 1], ids[best]);
        if (best + 1 < size) values[best] = find(ids[best], ids[best + 1]);
    }
    return size;
}

// A heap of candidate merges over a linked list: O(n log n) however long the row.
std::size_t MergeTable::apply_long(std::span<TokenId> symbols) const {
    struct Node {
        TokenId id;
        std::int64_t previous, next;
    };
    struct Candidate {
        std::uint64_t value;
        std::int64_t place;
        TokenId left, right;
        bool operator>(const Candidate& other) const noexcept {
            return std::tie(value, place) > std::tie(other.value, other.place);
        }
    };
    const auto size = static_cast<std::int64_t>(symbols.size());
    std::vector<Node> nodes(symbols.size());
    const auto node = [&](std::int64_t place) -> Node& { return nodes[static_cast<std::size_t>(place)]; };
    for (std::int64_t i = 0; i < size; ++i) {
        node(i) = {symbols[static_cast<std::size_t>(i)], i - 1, i + 1 < size ? i + 1 : -1};
    }
    std::priority_queue<Candidate, std::vector<Candidate>, std::greater<>> queue;
    const auto propose = [&](std::int64_t place) {
        if (place < 0 || node(place).next < 0) return;
        const TokenId left = node(place).id;
        const TokenId right = node(node(place).next).id;
        const std::uint64_t value = find(left, right);
        if (value != kNoPair) queue.push({value, place, left, right});
    };
    for (std::int64_t i = 0; i + 1 < size; ++i) propose(i);
    while (!queue.empty()) {
        const Candidate top = queue.top();
        queue.pop();
        Node& left = node(top.place);
        if (left.id != top.left || left.next < 0 || node(left.next).id != top.right) continue;  // outdated
        const std::int64_t removed = left.next;
        left.id = static_cast<TokenId>(top.value);
        left.next = node(removed).next;
        if (left.next >= 0) node(left.next).previous = top.place;
        node(removed).id = kNone;
        propose(left.previous);
        propose(top.place);
    }
    std::size_t count = 0;
    for (std::int64_t i = 0; i >= 0; i = node(i).next) symbols[count++] = node(i).id;
    return count;
}

}  // namespace pylm
