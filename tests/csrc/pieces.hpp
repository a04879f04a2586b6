// Checks of pre-tokenization that hold for any text.
#pragma once

#include <cstddef>
#include <span>
#include <string_view>
#include <vector>

#include "tokenizer/pretokenize.hpp"

namespace pylm::tests {

// All patterns but kWhole.
std::span<const Pattern> all_patterns();

// Ends of all pieces from `start`, which must be the start of one, by blocks of `capacity`.
std::vector<std::size_t> cut_all(CutFunction cut, std::string_view text, std::size_t start, std::size_t capacity);

// The machines of every level give the pieces of the one that goes character by character, in blocks of a few
// sizes and of `capacity`, also from the start of piece `first` (modulo their number) on; so do `end_of_piece`
// and `Pretokenizer`.
void check_pieces(Pattern pattern, std::string_view text, std::size_t capacity, std::size_t first);

// The pieces on both sides of the safe border at or after `position`, and those between all safe borders, are
// those of the whole.
void check_borders(Pattern pattern, std::string_view text, std::size_t position);

}  // namespace pylm::tests
