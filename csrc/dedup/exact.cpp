#include "dedup/exact.hpp"

#include <algorithm>
#include <bit>
#include <cstddef>

#include "dedup/xxhash.hpp"
#include "parallel.hpp"
#include "text/arrow.hpp"

namespace pylm::dedup {

std::vector<std::int64_t> exact_duplicates(std::span<const std::string_view> texts, unsigned num_threads) {
    constexpr std::size_t block = 256;
    std::vector<std::uint64_t> hashes(texts.size());
    parallel_for((texts.size() + block - 1) / block, num_threads, [&](std::size_t task) {
        const std::size_t end = std::min(texts.size(), (task + 1) * block);
        for (std::size_t i = task * block; i < end; ++i) {
            if (!arrow::is_null(texts[i])) hashes[i] = xxh3_64(texts[i], 0);
        }
    });

    // Open addressing, at most half full; -1 is empty. Insertion in order makes the first text the one found.
    const std::size_t slots = std::bit_ceil(2 * texts.size() + 1);
    std::vector<std::int64_t> table(slots, -1);
    std::vector<std::int64_t> first(texts.size());
    for (std::size_t i = 0; i < texts.size(); ++i) {
        first[i] = static_cast<std::int64_t>(i);
        if (arrow::is_null(texts[i])) continue;
        for (std::size_t slot = hashes[i] & (slots - 1);; slot = (slot + 1) & (slots - 1)) {
            if (table[slot] < 0) {
                table[slot] = first[i];
                break;
            }
            const auto other = static_cast<std::size_t>(table[slot]);
            if (hashes[other] == hashes[i] && texts[other] == texts[i]) {
                first[i] = table[slot];
                break;
            }
        }
    }
    return first;
}

}  // namespace pylm::dedup
