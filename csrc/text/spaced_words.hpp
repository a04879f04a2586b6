// Words as what white space separates: the count of Python's `len(text.split())`.
#pragma once

#include <cstddef>
#include <string_view>

namespace pylm {

// Number of runs of characters that are no white space. White space is what Python's str.isspace() says:
// Unicode's White_Space and U+001C to U+001F. Invalid bytes belong to words. O(n); eight bytes at a time where
// no lead byte of a wide space stands in the way.
std::size_t count_spaced_words(std::string_view text) noexcept;

}  // namespace pylm
