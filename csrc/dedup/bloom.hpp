// A set that forgets nothing and at times takes a stranger for a member (Bloom 1970).
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string_view>
#include <utility>

namespace pylm::dedup {

using Hash128 = std::pair<std::uint64_t, std::uint64_t>;

// XXH3 with two seeds; the same on every machine and in every version.
Hash128 hash128(std::string_view text) noexcept;

// Whether all places of a hash are set among the bits of `words`; sets them where `add`. Places are those of enhanced
// double hashing (Dillinger, Manolios 2004). `words` is not empty. O(num_hashes).
bool visit_bloom(std::span<std::uint64_t> words, std::size_t num_hashes, const Hash128& hash, bool add) noexcept;

}  // namespace pylm::dedup
