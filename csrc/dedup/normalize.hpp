// Texts as other tools see them before they cut words: characters replaced, white space collapsed.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace pylm::dedup {

// What becomes of each character, whatever its neighbours. Filled by the caller, since it depends on a tool and on
// a version of Unicode.
class CharacterTable {
public:
    enum Action : std::uint32_t {
        kKeep,
        kSpace,    // white space, or as if
        kDrop,
        kDigit,    // where `numbers`: part of a number
        kUnknown,  // what becomes of it depends on others
        kReplace,  // and beyond: replacements[action - kReplace]
    };

    // `actions` by code point, all beyond are unknown. With `numbers`, a run of digits, with at most one decimal mark
    // and digits behind it, becomes "0". Throws std::invalid_argument where an action names no replacement.
    CharacterTable(std::vector<std::uint32_t> actions, std::vector<std::string> replacements, bool numbers);

    std::uint32_t action(char32_t point) const noexcept {
        return point < actions_.size() ? actions_[point] : std::uint32_t{kUnknown};
    }
    const std::string& replacement(std::uint32_t action) const noexcept { return replacements_[action - kReplace]; }
    bool numbers() const noexcept { return numbers_; }

    // What becomes of a byte alone: one character, or 0 where it takes more to say.
    char simple(char byte) const noexcept { return simple_[static_cast<std::uint8_t>(byte)]; }

private:
    std::vector<std::uint32_t> actions_;
    std::vector<std::string> replacements_;
    bool numbers_;
    std::array<char, 256> simple_{};
};

// Put the words of a text, parted by one space each, into `out`. Returns false, and leaves `out` in no particular
// state, where a character is unknown or bytes are no UTF-8. O(text.size()).
bool normalize(std::string_view text, const CharacterTable& table, std::string& out);

}  // namespace pylm::dedup
