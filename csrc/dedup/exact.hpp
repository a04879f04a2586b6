// Equal texts.
#pragma once

#include <cstdint>
#include <span>
#include <string_view>
#include <vector>

namespace pylm::dedup {

// For every text the index of the first text with the same bytes, its own index where there is none before. A
// null (a view without data) equals nothing. Hashes find candidates, bytes decide, so there are no false
// matches. O(total bytes) expected; the result does not depend on `num_threads` (0: all cores).
std::vector<std::int64_t> exact_duplicates(std::span<const std::string_view> texts, unsigned num_threads);

}  // namespace pylm::dedup
