// Texts as other tools see them before they cut words: characters replaced, white space collapsed.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace pylm::dedup {

// What becomes of each character, whatever its neighbours. Filled by the caller, since it depends on a tool and on
// a version of Unicode.
struct CharacterTable {
    enum Action : std::uint32_t {
        kKeep,
        kSpace,    // white space, or as if
        kDrop,
        kDigit,    // where `numbers`: part of a number
        kUnknown,  // what becomes of it depends on others
        kReplace,  // and beyond: replacements[action - kReplace]
    };

    std::vector<std::uint32_t> actions;  // by code point; all beyond are unknown
    std::vector<std::string> replacements;
    bool numbers = false;  // a run of digits, with at most one decimal mark and digits behind it, becomes "0"
};

// Put the words of a text, parted by one space each, into `out`. Returns false, and leaves `out` in no particular
// state, where a character is unknown or bytes are no UTF-8. Throws std::invalid_argument for a table whose actions
// name no replacement. O(text.size()).
bool normalize(std::string_view text, const CharacterTable& table, std::string& out);

}  // namespace pylm::dedup
