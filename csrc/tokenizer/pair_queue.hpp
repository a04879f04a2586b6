// The order in which pairs are merged.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "tokenizer/pair_table.hpp"

namespace pylm {

// Which of several equally frequent pairs is merged first.
enum class Ties : std::uint8_t {
    kSmallestIds,    // smallest left id, then right id: Hugging Face's trainer
    kGreatestBytes,  // greatest bytes of the left token, then of the right one: the CS336 reference
};

// Bytes of every id.
class TokenBytes {
public:
    void set(std::uint32_t id, std::string bytes) {
        if (id >= bytes_.size()) {
            bytes_.resize(std::max<std::size_t>(id + 1, 2 * bytes_.size()));
            sizes_.resize(bytes_.size());
        }
        sizes_[id] = static_cast<std::uint32_t>(bytes.size());
        bytes_[id] = std::move(bytes);
    }
    const std::string& operator[](std::uint32_t id) const noexcept { return bytes_[id]; }
    std::uint32_t size(std::uint32_t id) const noexcept { return sizes_[id]; }

private:
    std::vector<std::string> bytes_;
    std::vector<std::uint32_t> sizes_;  // of the same, for merging, which needs nothing else
};

// Pairs in the order in which they are merged. Counts only fall once a pair is known, so an entry may be out
// of date but never too low; and a pair whose count is below the bar need not be here until the bar is lowered.
class PairQueue {
public:
    PairQueue(const PairTable& pairs, const TokenBytes& tokens, Ties ties, std::int64_t least)
        : pairs_(pairs), tokens_(tokens), ties_(ties), least_(least) {
        std::int64_t most = 0;
        pairs_.visit([&](PairKey, std::int64_t count) { most = std::max(most, count); });
        bar_ = most;
        refill();
    }

    void push(PairKey pair, std::int64_t count) {
        if (count < bar_) return;
        heap_.push_back({count, pair});
        std::ranges::push_heap(heap_, [this](const Entry& a, const Entry& b) { return after(a, b); });
    }

    // The pair to merge next; false where none is left.
    bool pop(PairKey& pair) {
        const auto order = [this](const Entry& a, const Entry& b) { return after(a, b); };
        for (;;) {
            if (heap_.empty()) {
                if (bar_ <= least_ || pairs_.size() == 0) return false;
                bar_ = std::max(least_, bar_ / 2);
                refill();
                continue;
            }
            std::ranges::pop_heap(heap_, order);
            const Entry top = heap_.back();
            heap_.pop_back();
            const std::int64_t count = pairs_.count(top.pair);
            if (count == top.count) {
                pair = top.pair;
                return true;
            }
            push(top.pair, count);
        }
    }

private:
    struct Entry {
        std::int64_t count;
        PairKey pair;
    };

    bool after(const Entry& a, const Entry& b) const {
        if (a.count != b.count) return a.count < b.count;
        if (ties_ == Ties::kSmallestIds) return a.pair > b.pair;
        const int left = tokens_[left_of(a.pair)].compare(tokens_[left_of(b.pair)]);
        return left != 0 ? left < 0 : tokens_[right_of(a.pair)] < tokens_[right_of(b.pair)];
    }

    void refill() {
        pairs_.visit([&](PairKey pair, std::int64_t count) {
            if (count >= bar_) heap_.push_back({count, pair});
        });
        std::ranges::make_heap(heap_, [this](const Entry& a, const Entry& b) { return after(a, b); });
    }

    const PairTable& pairs_;
    const TokenBytes& tokens_;
    Ties ties_;
    std::int64_t least_;
    std::int64_t bar_ = 0;
    std::vector<Entry> heap_;
};

}  // namespace pylm
