// Repeated substrings by looking at every window, for tests and fuzzers.
#pragma once

#include <string>
#include <vector>

#include "dedup/substring.hpp"

namespace pylm::tests {

// Throws unless both methods, in all their ways, with `sources` and without, with either rule of what stays,
// find what a map of all windows says. `length` is in symbols of `symbol_bytes`; texts are cut to whole
// symbols.
void check_spans(std::vector<std::string> texts, std::vector<std::string> sources, std::size_t length,
                 std::size_t symbol_bytes, bool on_characters);

}  // namespace pylm::tests
