#include "dedup/normalize.hpp"

#include <stdexcept>

#include "text/unicode.hpp"

namespace pylm::dedup {
namespace {

// Marks that part the digits of one number: full stop, comma, Arabic comma and decimal separator, and the decimal
// separators of other keyboards.
bool is_decimal_mark(char32_t point) noexcept {
    return point == U'.' || point == U',' || point == 0x060C || point == 0x066B ||
           (point >= 0x2396 && point <= 0x2398);
}

std::uint32_t action_of(const CharacterTable& table, char32_t point) noexcept {
    return point < table.actions.size() ? table.actions[point] : std::uint32_t{CharacterTable::kUnknown};
}

// End of the digits from `i` on.
std::size_t skip_digits(std::string_view text, const CharacterTable& table, std::size_t i) noexcept {
    while (i < text.size()) {
        const Decoded decoded = decode_utf8(text, i);
        if (action_of(table, decoded.point) != CharacterTable::kDigit) break;
        i += decoded.size;
    }
    return i;
}

// End of the number whose first digits end at `i`.
std::size_t end_of_number(std::string_view text, const CharacterTable& table, std::size_t i) noexcept {
    if (i == text.size()) return i;
    const Decoded mark = decode_utf8(text, i);
    if (!is_decimal_mark(mark.point)) return i;
    const std::size_t end = skip_digits(text, table, i + mark.size);
    return end > i + mark.size ? end : i;
}

}  // namespace

bool normalize(std::string_view text, const CharacterTable& table, std::string& out) {
    out.clear();
    bool space = false;
    const auto begin_word = [&] {
        if (space && !out.empty()) out.push_back(' ');
        space = false;
    };
    for (std::size_t i = 0; i < text.size();) {
        const Decoded decoded = decode_utf8(text, i);
        if (decoded.size == 1 && decoded.point >= 0x80) return false;
        const std::uint32_t action = action_of(table, decoded.point);
        const std::size_t begin = i;
        i += decoded.size;
        switch (action) {
            case CharacterTable::kKeep:
                begin_word();
                out.append(text, begin, decoded.size);
                break;
            case CharacterTable::kSpace: space = true; break;
            case CharacterTable::kDrop: break;
            case CharacterTable::kDigit:
                begin_word();
                if (table.numbers) {
                    i = end_of_number(text, table, skip_digits(text, table, i));
                    out.push_back('0');
                } else {
                    out.append(text, begin, decoded.size);
                }
                break;
            case CharacterTable::kUnknown: return false;
            default:
                if (action - CharacterTable::kReplace >= table.replacements.size())
                    throw std::invalid_argument("an action of the table names no replacement");
                begin_word();
                out += table.replacements[action - CharacterTable::kReplace];
        }
    }
    return true;
}

}  // namespace pylm::dedup
