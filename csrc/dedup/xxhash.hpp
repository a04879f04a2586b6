// XXH64 and XXH3 (64 bits), written from the published specification, for signatures that must equal those of
// other tools. https://github.com/Cyan4973/xxHash/blob/dev/doc/xxhash_spec.md
#pragma once

#include <cstdint>
#include <string_view>

namespace pylm {

// O(bytes.size()); no allocation.
std::uint64_t xxh64(std::string_view bytes, std::uint64_t seed) noexcept;
std::uint64_t xxh3_64(std::string_view bytes, std::uint64_t seed) noexcept;

}  // namespace pylm
