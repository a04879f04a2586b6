#include "dedup/normalize.hpp"

#include <stdexcept>
#include <utility>

#include "text/unicode.hpp"

namespace pylm::dedup {
namespace {

// Marks that part the digits of one number: full stop, comma, Arabic comma and decimal separator, and the decimal
// separators of other keyboards.
bool is_decimal_mark(char32_t point) noexcept {
    return point == U'.' || point == U',' || point == 0x060C || point == 0x066B ||
           (point >= 0x2396 && point <= 0x2398);
}

// End of the digits from `i` on.
std::size_t skip_digits(std::string_view text, const CharacterTable& table, std::size_t i) noexcept {
    while (i < text.size()) {
        const Decoded decoded = decode_utf8(text, i);
        if (table.action(decoded.point) != CharacterTable::kDigit) break;
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

CharacterTable::CharacterTable(std::vector<std::uint32_t> actions, std::vector<std::string> replacements, bool numbers)
    : actions_(std::move(actions)), replacements_(std::move(replacements)), numbers_(numbers) {
    for (const std::uint32_t action : actions_) {
        if (action >= kReplace && action - kReplace >= replacements_.size())
            throw std::invalid_argument("an action of the table names no replacement");
    }
    for (std::size_t byte = 0; byte < 0x80; ++byte) {
        const std::uint32_t what = action(static_cast<char32_t>(byte));
        if (what == kKeep || (what == kDigit && !numbers)) simple_[byte] = static_cast<char>(byte);
        if (what == kSpace) simple_[byte] = ' ';
        if (what >= kReplace && replacement(what).size() == 1) simple_[byte] = replacement(what)[0];
    }
}

bool normalize(std::string_view text, const CharacterTable& table, std::string& out) {
    out.resize(text.size());
    std::size_t size = 0;  // of what is done; its end is a space where one is due, as at the beginning
    const auto at_space = [&] { return size == 0 || out[size - 1] == ' '; };
    std::size_t i = 0;
    const auto append = [&](std::string_view bytes) {  // keeps room for one byte for each that is left
        const std::size_t needed = size + bytes.size() + text.size() - i;
        if (needed > out.size()) out.resize(2 * needed);
        bytes.copy(out.data() + size, bytes.size());
        size += bytes.size();
    };
    while (i < text.size()) {
        if (const char simple = table.simple(text[i]); simple != 0) {
            // `out` has room for all that is left.
            char last = size == 0 ? ' ' : out[size - 1];
            char* to = out.data() + size;
            char next = simple;
            do {
                *to = next;
                to += !(next == ' ' && last == ' ');
                last = next;
                ++i;
                next = i < text.size() ? table.simple(text[i]) : '\0';
            } while (next != 0);
            size = static_cast<std::size_t>(to - out.data());
            continue;
        }
        const Decoded decoded = decode_utf8(text, i);
        if (decoded.size == 1 && decoded.point >= 0x80) return false;
        const std::uint32_t action = table.action(decoded.point);
        const std::string_view character = text.substr(i, decoded.size);
        i += decoded.size;
        switch (action) {
            case CharacterTable::kKeep: append(character); break;
            case CharacterTable::kSpace:
                if (!at_space()) append(" ");
                break;
            case CharacterTable::kDrop: break;
            case CharacterTable::kDigit:
                if (table.numbers()) {
                    i = end_of_number(text, table, skip_digits(text, table, i));
                    append("0");
                } else {
                    append(character);
                }
                break;
            case CharacterTable::kUnknown: return false;
            default: append(table.replacement(action));
        }
    }
    if (size > 0 && out[size - 1] == ' ') --size;
    out.resize(size);
    return true;
}

}  // namespace pylm::dedup
