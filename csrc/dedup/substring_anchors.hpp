// Which places of a text are anchors: see substring_sampled.cpp.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <string_view>
#include <vector>

namespace pylm::dedup {

inline std::uint64_t load64(const char* data) noexcept {
    std::uint64_t word;
    std::memcpy(&word, data, sizeof word);
    return word;
}

// Of a core, what its fingerprint is made of at most: anchors that are dense, in runs, have cores that overlap, and
// the whole of long ones takes longer to hash than to compare.
inline constexpr std::size_t kFingerprintBytes = 128;

// How anchors are chosen.
struct Sampling {
    std::size_t length;  // of windows, in symbols
    std::size_t core;    // symbols from an anchor on that its windows share
    std::size_t spread;  // distances of an anchor from the beginnings of its windows: 0 to spread - 1

    explicit Sampling(std::size_t window) noexcept
        : length(window), core((window + 1) / 2), spread(window - core + 1) {}
};

// The key that decides among the places of a window, without its lower half: the hash of the first 8 bytes of
// the core.
struct WholeKey {
    std::uint64_t operator()(const char* data, std::size_t) const noexcept { return hash(load64(data)); }
    static std::uint64_t hash(std::uint64_t word) noexcept { return (word + 1) * 0x9E3779B97F4A7C15ULL & kMask; }
    static constexpr std::uint64_t kMask = ~std::uint64_t{0xFFFFFFFF};
};
// Of cores that are smaller; `left` bytes are to be read.
struct ShortKey {
    std::size_t size;
    std::uint64_t operator()(const char* data, std::size_t left) const noexcept {
        std::uint64_t word = 0;
        if (left >= 8) {
            word = load64(data) & ((std::uint64_t{1} << 8 * size) - 1);
        } else {
            std::memcpy(&word, data, size);
        }
        return WholeKey::hash(word);
    }
};

// Calls visit(key, anchor, first window, last window), counted from the first of `num_windows` windows that
// begin with `data`, for each anchor in order. Van Herk's sliding minimum: a window over blocks of `spread`
// places is the end of one and the beginning of the next. The lower half of a key in `least` is its place, so
// that the first of equal ones is the least.
template <unsigned kShift, typename Key, typename Visit>
void select_anchors(std::size_t spread, const Key key_of, std::string_view data, std::size_t num_windows,
                    std::vector<std::uint64_t>& least, Visit&& visit) {
    const auto key_at = [=](std::size_t place) {
        return key_of(data.data() + (place << kShift), data.size() - (place << kShift)) | place;
    };
    least.resize(spread);
    for (std::size_t i = 0; i < spread; ++i) least[i] = key_at(i);
    std::uint64_t current = ~std::uint64_t{0};
    std::size_t first = 0;
    const auto leave = [&](std::size_t window) {
        visit(current & WholeKey::kMask, current & ~WholeKey::kMask, first, window - 1);
        first = window;
    };
    for (std::size_t block = 0; block < num_windows; block += spread) {
        std::uint64_t* const blocks_least = least.data();
        for (std::size_t i = spread - 1; i > 0; --i) {
            blocks_least[i - 1] = std::min(blocks_least[i - 1], blocks_least[i]);
        }
        if (blocks_least[0] != current) {
            if (block != 0) leave(block);
            current = blocks_least[0];
        }
        const std::size_t count = std::min(spread, num_windows - block);
        std::uint64_t begun = ~std::uint64_t{0};
        for (std::size_t i = 1; i < count; ++i) {
            const std::uint64_t next = key_at(block + spread + i - 1);
            begun = std::min(begun, next);
            const std::uint64_t now = std::min(blocks_least[i], begun);
            blocks_least[i - 1] = next;
            if (now != current) {
                leave(block + i);
                current = now;
            }
        }
        if (block + spread < num_windows) blocks_least[spread - 1] = key_at(block + 2 * spread - 1);
    }
    leave(num_windows);
}

}  // namespace pylm::dedup
