// An open-addressing table that numbers the distinct keys of one document after another, reusing its memory.
#pragma once

#include <algorithm>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "text/hash.hpp"

namespace pylm::signals {

class Numbering {
public:
    // Forget all keys and make room for `count` new ones. O(count).
    void reset(std::size_t count) {
        const std::size_t capacity = std::bit_ceil(std::max<std::size_t>(16, count * 2));
        if (slots_.size() < capacity) slots_.resize(capacity);
        mask_ = capacity - 1;
        size_ = 0;
        std::fill_n(slots_.begin(), capacity, Slot{0, kEmpty});
    }

    // Number of a key: 0, 1, 2, ... in the order of first sight; at most `count` keys differ. O(1) expected.
    std::uint32_t operator()(std::uint64_t key) {
        for (std::size_t i = mix64(key) & mask_;; i = (i + 1) & mask_) {
            Slot& slot = slots_[i];
            if (slot.number == kEmpty) {
                slot = {key, size_};
                return size_++;
            }
            if (slot.key == key) return slot.number;
        }
    }

    std::uint32_t size() const noexcept { return size_; }

private:
    static constexpr std::uint32_t kEmpty = 0xFFFFFFFF;
    struct Slot {
        std::uint64_t key;
        std::uint32_t number;
    };

    std::vector<Slot> slots_;
    std::size_t mask_ = 0;
    std::uint32_t size_ = 0;
};

}  // namespace pylm::signals
