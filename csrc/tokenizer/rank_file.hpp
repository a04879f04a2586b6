// Rank files (`.tiktoken`): a line a token, base64 of its bytes, a space, its rank, which is its id.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "tokenizer/vocabulary.hpp"

namespace pylm {

// Read a rank file: the bytes of each rank (empty where one is missing) and all pairs of tokens whose bytes
// concatenate to a token, since any of them may be merged; the rank is that of the result. O(size of the
// file + number of pairs). Throws std::invalid_argument naming the line: no base64, no rank, a rank or a token
// for the second time, a rank too large for the number of lines; and for a file without a line.
Vocabulary read_rank_file(std::string_view content);

// All pairs of tokens whose bytes concatenate to a token, in order of the result and of the cut in it.
std::vector<MergeRule> pairs_of(const std::vector<std::string>& tokens);

// The merges among `vocabulary.merges` that reproduce it alone: for every token the pair that the merges of
// lower rank leave of its own bytes, in order of rank. A token that they cannot make has none.
std::vector<MergeRule> canonical_merges(const Vocabulary& vocabulary);

// The lines of a rank file for these tokens.
std::string write_rank_file(const std::vector<std::string>& tokens);

}  // namespace pylm
