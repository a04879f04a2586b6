// Signals of repeated runs of tokens.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "signals/signals.hpp"
#include "signals/table.hpp"
#include "signals/tokens.hpp"

namespace pylm::signals {

class NgramSignals {
public:
    // Fill kTop2 to kTop4 with the characters of the most frequent n-gram (tokens joined by one space each),
    // of equally frequent ones the first, times its occurrences; 0 with fewer than n tokens. `ids` numbers the
    // tokens.
    void count_top(std::span<const Token> tokens, std::span<const std::uint32_t> ids, Row& row);

    // Fill kDuplicate5 to kDuplicate10 with the characters of n-grams (tokens joined by nothing) that stood
    // before: from left to right, a repeat is skipped whole, anything else moves one token on.
    // `joined` holds the bytes of all tokens, `begins` tokens.size() + 1 places in it.
    void count_duplicates(std::span<const Token> tokens, std::string_view joined,
                          std::span<const std::size_t> begins, Row& row);

private:
    Numbering numbering_;
    std::vector<std::uint32_t> grams_;   // number of the n-gram at a token, kNone where it stands alone
    std::vector<std::uint32_t> counts_;  // by number
    std::vector<std::uint32_t> firsts_;  // by number: first token
    std::vector<std::uint8_t> repeated_;
};

}  // namespace pylm::signals
